"""What a person sees while a run goes on: a live panel in a terminal, plain lines elsewhere.

The run hands over a `Status` as often as it likes; the display decides what is worth showing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from veripo_ray.runlog import Stage, stage_label

ACCENT = "cyan"
SHOWN_STAGES = 8  # in the live panel, so that it fits a small terminal; the final table has all


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot of the run. None means not known yet; accuracy and inconsistency are shares."""

    run: str
    phase: str  # "starting", "initial", "grpo", "dpo", "evaluation", ...
    iteration: int = 0
    phase_index: int = 0  # from 1; 0 before the first phase
    phases: int = 0
    step: int = 0
    steps: int = 0  # 0: not known
    eta_seconds: float | None = None  # until the run ends
    tokens_per_second: float | None = None
    accuracy: float | None = None
    inconsistency: float | None = None
    judged: int = 0  # groups with verdicts, of `groups` in this phase
    groups: int = 0
    pairs: int = 0
    message: str = ""
    stages: tuple[Stage, ...] = ()

    @property
    def label(self) -> str:
        """'grpo 2'; of an evaluation or a start, the iteration says nothing."""
        in_loop = self.phase in ("sft", "grpo", "dpo")
        return stage_label(self.iteration, self.phase) if in_loop else self.phase


class Eta:
    """Time left, from what each kind of work has taken so far.

    `prior` says what a unit of each kind costs relative to the others before it has been seen, for
    example {"grpo step": 1.0, "dpo step": 0.3}; the kinds already seen scale it to seconds.
    """

    def __init__(self, prior: Mapping[str, float]) -> None:
        self._prior = dict(prior)
        self._seen: dict[str, tuple[float, float]] = {}  # kind -> (seconds, units)

    def observe(self, kind: str, seconds: float, units: float = 1.0) -> None:
        before_seconds, before_units = self._seen.get(kind, (0.0, 0.0))
        self._seen[kind] = (before_seconds + seconds, before_units + units)

    def remaining(self, todo: Mapping[str, float]) -> float | None:
        """Seconds for `todo` (kind -> units); None while nothing has been observed.
        KeyError for a kind that has neither a prior nor an observation."""
        scale = self._scale()
        if scale is None:
            return None
        return sum(units * self._unit_seconds(kind, scale) for kind, units in todo.items())

    def _scale(self) -> float | None:
        seen = [(s, u * self._prior[k]) for k, (s, u) in self._seen.items() if k in self._prior]
        expected = sum(units for _, units in seen)
        return sum(seconds for seconds, _ in seen) / expected if expected else None

    def _unit_seconds(self, kind: str, scale: float) -> float:
        seconds, units = self._seen.get(kind, (0.0, 0.0))
        return seconds / units if units else self._prior[kind] * scale


class Progress:
    """The display of one run, to be used as a context manager.

    In a terminal a panel is redrawn in place; in a log a line is printed when the phase, the
    message or the stages change, and otherwise at most every `line_every_s` seconds.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        line_every_s: float = 10.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console(highlight=False)
        self._every, self._now, self._started = line_every_s, now, now()
        self._last_line, self._news, self._stages = float("-inf"), ("", ""), 0
        self._live: Live | None = None
        self.status: Status | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._panel, console=self.console, refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def update(self, status: Status) -> None:
        self.status = status
        if self._live is None:
            self._log(status)

    def finish(
        self, stages: Sequence[Stage], *, report: Path | None, checkpoint: Path | None, note: str = ""
    ) -> None:
        """Puts the final table in the place of the live panel. `note`: why the run ended early."""
        self._stop()
        self.console.print()
        if stages:
            self.console.print(final_table(stages, width=self.console.width))
            self.console.print(Text("± one standard error of the mean", style="dim"))
        self.console.print(_closing(self._elapsed(), report, checkpoint, note))

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _elapsed(self) -> float:
        return self._now() - self._started

    def _panel(self) -> RenderableType:
        return panel(self.status, self._elapsed()) if self.status else Text("starting", style="dim")

    def _log(self, status: Status) -> None:
        for stage in status.stages[self._stages :]:
            self.console.print(Text(f"{status.run}: {stage_line(stage)}"), soft_wrap=True)
        self._stages = len(status.stages)
        news, now = (status.label, status.message), self._now()
        if news != self._news or now - self._last_line >= self._every:
            self._news, self._last_line = news, now
            self.console.print(Text(plain_line(status)), soft_wrap=True)


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
    gauges = _measures(status)
    grid = Table.grid(expand=True)
    for _ in gauges:
        grid.add_column(ratio=1, no_wrap=True)
    grid.add_row(*(Text(name, style="dim") for name, _ in gauges))
    grid.add_row(*(Text(value, style="bold") for _, value in gauges))
    return grid


def _measures(status: Status) -> list[tuple[str, str]]:
    return [
        ("accuracy", share(status.accuracy)),
        ("inconsistency", share(status.inconsistency)),
        ("tokens/s", "–" if status.tokens_per_second is None else f"{status.tokens_per_second:,.0f}"),
        ("judged", f"{status.judged}/{status.groups}" if status.groups else "–"),
        ("pairs", f"{status.pairs:,}" if status.pairs else "–"),
    ]


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
            f"{stage.mean_think_tokens:.1f}",
            f"{stage.pairs:,}" if stage.pairs else "–",
        )
    return table


FINAL_COLUMNS = ("accuracy", "inconsistency", "think", "repeats", "format", "samples", "time", "gap")


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
        f"{stage.mean_think_tokens:.1f}",
        share(stage.repetition),
        share(stage.format),
        f"{stage.samples:,}" if stage.samples else "–",
        duration(stage.seconds),
        "–" if stage.logprob_gap_max is None else f"{stage.logprob_gap_max:.0e}",
    )


def _closing(
    elapsed: float, report: Path | None, checkpoint: Path | None, note: str
) -> RenderableType:
    lines = [("report", report), ("checkpoint", checkpoint)]
    text = Text()
    if note:
        text.append(f"\n{note}\n", style="yellow")
    text.append(f"\n{'took':<11}", style="dim").append(duration(elapsed))
    for name, path in lines:
        if path is not None:
            text.append(f"\n{name:<11}", style="dim").append(str(path), style=ACCENT)
    return text


def plain_line(status: Status) -> str:
    """One line of a log: only what is known."""
    parts = [status.label]
    if status.phases and status.phase_index:
        parts[0] += f" ({status.phase_index}/{status.phases})"
    if status.steps:
        parts[0] += f" step {status.step}/{status.steps}"
    parts += [f"{name} {value}" for name, value in _measures(status) if value != "–"]
    if status.eta_seconds is not None:
        parts.append(f"about {duration(status.eta_seconds)} left")
    if status.message:
        parts.append(status.message)
    return f"{status.run}: " + " · ".join(parts)


def stage_line(stage: Stage) -> str:
    return (
        f"after {stage.label}: accuracy {with_error(stage.accuracy, stage.accuracy_se)}"
        f" · inconsistency {with_error(stage.inconsistency, stage.inconsistency_se)}"
        f" · think tokens {stage.mean_think_tokens:.1f} · format {share(stage.format)}"
    )


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if error is None else f"{value:.3f} ±{error:.3f}".replace("±0.", "±.")


def duration(seconds: float) -> str:
    """48s, 3m 05s, 2h 14m, 1d 03h."""
    total = round(seconds)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m {total % 60:02d}s"
    if total < 86_400:
        return f"{total // 3600}h {total % 3600 // 60:02d}m"
    return f"{total // 86_400}d {total % 86_400 // 3600:02d}h"
