"""The display of a run: it is handed a `Status` as often as one likes and decides what to show."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from veripo_ray.progress.formats import duration
from veripo_ray.progress.lines import plain_line, stage_line
from veripo_ray.progress.panel import ACCENT, final_table, panel
from veripo_ray.progress.status import Status
from veripo_ray.runlog import Stage


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
                get_renderable=self._panel,
                console=self.console,
                refresh_per_second=4,
                transient=True,
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

    def say(self, line: str) -> None:
        """A line of its own, above the live panel where there is one."""
        self.console.print(Text(line), soft_wrap=True)

    def finish(
        self,
        stages: Sequence[Stage],
        *,
        report: Path | str | None,
        checkpoint: Path | str | None,
        verdict: str,
    ) -> None:
        """Puts the final table in the place of the live panel. `verdict`: the last line, which says
        how the run ended."""
        self._stop()
        self.console.print()
        if stages:
            self.console.print(final_table(stages, width=self.console.width))
            self.console.print(Text("± one standard error of the mean", style="dim"))
        self.console.print(_closing(self._elapsed(), report, checkpoint, verdict), soft_wrap=True)

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


def _closing(
    elapsed: float, report: Path | str | None, checkpoint: Path | str | None, verdict: str
) -> RenderableType:
    lines = [("report", report), ("checkpoint", checkpoint)]
    text = Text()
    text.append(f"\n{'took':<11}", style="dim").append(duration(elapsed))
    for name, path in lines:
        if path is not None:
            text.append(f"\n{name:<11}", style="dim").append(str(path), style=ACCENT)
    text.append(f"\n{verdict}")
    return text
