"""A calibration for people to read, in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from veripo_ray.verifier.calibration.figures import Figure
from veripo_ray.verifier.calibration.measure import Calibration, Remark
from veripo_ray.verifier.calibration.written import figures_of

_LEFT: dict[str, Any] = {"title_justify": "left", "caption_justify": "left"}
_COUNTS = ("undecided", "errors", "found", "missed", "passed", "false_alarms")
_LEGEND = (
    "found, missed: of the inconsistent; passed, false alarms: of the consistent\n"
    "precision, recall: of finding an inconsistency; in brackets 95% intervals"
)


def show(calibration: Calibration, file: str, console: Console) -> None:
    """Every figure, then every case on which judge and label do not agree."""
    console.print(Group(*_parts(calibration, file)))


def _parts(calibration: Calibration, file: str) -> Iterator[RenderableType]:
    yield _table(calibration, file)
    cost = calibration.cost
    yield Text(
        f"1,000 cases cost {cost.seconds:.3g} s, and {cost.cpu_seconds:.3g} s of this process's CPU"
    )
    if calibration.bins:
        yield _reliability(calibration)
    for one in calibration.thresholds:
        how = "leaving one out" if one.folds == calibration.cases else f"in {one.folds} folds"
        yield Text(
            f"threshold {one.value:.3f} is best by {one.objective}: {one.in_sample:.3f} on these "
            f"cases, {one.cross_validated:.3f} cross-validated ({how})"
        )
    for remark in calibration.remarks:
        yield _remark(remark)


def _table(calibration: Calibration, file: str) -> Table:
    title = f"the judge {calibration.judge} on {file}"
    table = Table(title=title, caption=_LEGEND, box=SIMPLE_HEAD, **_LEFT)
    table.add_column("", no_wrap=True)
    for part in calibration.parts:
        table.add_column(part.name, justify="right")
    table.add_row("cases", *(str(part.counts.total) for part in calibration.parts))
    for field in _COUNTS:
        counts = (str(getattr(part.counts, field)) for part in calibration.parts)
        table.add_row(field.replace("_", " "), *counts)
    columns = [figures_of(part) for part in calibration.parts]
    for name in columns[0]:
        table.add_row(name, *(_shown(column[name]) for column in columns))
    return table


def _reliability(calibration: Calibration) -> Table:
    error = calibration.calibration_error
    title = f"reliability: expected calibration error {error:.3f}"
    table = Table(title=title, box=SIMPLE_HEAD, **_LEFT)
    for title in ("P(consistent)", "cases", "mean", "share consistent"):
        table.add_column(title, justify="right")
    for one in calibration.bins:
        bounds = f"{one.low:.1f} to {one.high:.1f}"
        mean = f"{one.probability:.3f}"
        table.add_row(bounds, str(one.cases), mean, _shown(one.observed))
    return table


def _remark(remark: Remark) -> Text:
    label = "consistent" if remark.consistent else "inconsistent"
    split = f" ({remark.split})" if remark.split else ""
    text = Text(f"\n{remark.id}{split}: ", style="bold")
    text.append(f"{label}; the judge: {remark.said}", style="")
    text.append(f"\n  judge: {remark.because}\n  label: {remark.why}", style="dim")
    return text


def _shown(figure: Figure) -> str:
    if figure.value is None:
        return "-"
    return f"{figure.value:.2f} ({figure.low:.2f}..{figure.high:.2f})"
