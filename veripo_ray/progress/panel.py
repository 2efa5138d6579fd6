"""The live panel and the final table, for terminals of 80 columns and more."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from veripo_ray.progress.formats import UNKNOWN, duration, share, tokens, with_error
from veripo_ray.progress.lines import measures
from veripo_ray.progress.status import Status
from veripo_ray.runlog import Stage

ACCENT = "cyan"
SHOWN_STAGES = 8  # in the live panel, so that it fits a small terminal; the final table has all


def panel(status: Status, elapsed: float) -> Panel:
    """The live display: where the run is, what it measures, the stages behind it."""
    parts: list[RenderableType] = [_where(status), _bar(status), Text(), _gauges(status)]
    if status.message:
        parts.append(Text(status.message, style="dim", overflow="ellipsis", no_wrap=True))
    if status.stages:
        parts += [Text(), stage_table(status.stages[-SHOWN_STAGES:])]
    left = "" if status.eta_seconds is None else f" · about {duration(status.eta_seconds)} left"
    return Panel(
        Group(*parts),
        title=Text.assemble(("VeriPO-Ray", "bold"), (f" · {status.run}", "dim")),
        title_align="left",
        subtitle=Text(f"{duration(elapsed)}{left}", style="dim"),
        subtitle_align="right",
        border_style="dim",
        padding=(1, 2),
        width=80,
    )


def _where(status: Status) -> Text:
    text = Text(status.label, style=f"bold {ACCENT}")
    if status.phases and status.phase_index:
        text.append(f"   phase {status.phase_index} of {status.phases}", style="not bold dim")
    return text


def _bar(status: Status) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", style="dim", no_wrap=True)
    bar = ProgressBar(
        total=status.steps or 1,
        completed=status.step if status.steps else 0,
        style="bright_black",
        complete_style=ACCENT,
        finished_style=ACCENT,
    )
    grid.add_row(bar, f"step {status.step} of {status.steps}" if status.steps else "")
    return grid


def _gauges(status: Status) -> Table:
    """Names over values, in equal columns, so that changing digits move nothing."""
    gauges = measures(status)
    grid = Table.grid(expand=True)
    for _ in gauges:
        grid.add_column(ratio=1, no_wrap=True)
    grid.add_row(*(Text(name, style="dim") for name, _ in gauges))
    grid.add_row(*(Text(value, style="bold") for _, value in gauges))
    return grid


def stage_table(stages: Sequence[Stage]) -> Table:
    """The stages so far, in the width of the panel."""
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("stage")
    for name in ("accuracy", "inconsistency", "think tokens", "pairs"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in stages:
        table.add_row(
            stage.label,
            with_error(stage.accuracy, stage.accuracy_se),
            with_error(stage.inconsistency, stage.inconsistency_se),
            tokens(stage.mean_think_tokens),
            f"{stage.pairs:,}" if stage.pairs else UNKNOWN,
        )
    return table


FINAL_COLUMNS = (
    "accuracy",
    "inconsistency",
    "think",
    "repeats",
    "format",
    "samples",
    "time",
    "gap",
)


def final_table(stages: Sequence[Stage], *, width: int = 80) -> Table:
    """Every stage in 80 columns; in wider terminals with air."""
    air = 1 if width < 100 else 3
    table = Table(box=None, padding=(0, air, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("stage", style="bold", no_wrap=True)
    for name in FINAL_COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for stage in stages:
        table.add_row(stage.label, *_final_cells(stage))
    return table


def _final_cells(stage: Stage) -> tuple[str, ...]:
    return (
        with_error(stage.accuracy, stage.accuracy_se),
        with_error(stage.inconsistency, stage.inconsistency_se),
        tokens(stage.mean_think_tokens),
        share(stage.repetition),
        share(stage.format),
        f"{stage.samples:,}" if stage.samples else UNKNOWN,
        duration(stage.seconds),
        UNKNOWN if stage.logprob_gap_max is None else f"{stage.logprob_gap_max:.0e}",
    )
