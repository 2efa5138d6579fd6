"""Ctrl-C and SIGTERM as a wish that is honoured at the next step, with a checkpoint on disk."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Self


class StoppedAtOnce(SystemExit):
    """A signal came while there was nothing to save, or a second one came."""


class Stop:
    """Ctrl-C and SIGTERM. While a run is being prepared they end the command at once; once it is
    `patient` the first one is noted, for the run to stop at, and a second one ends the command.

    signal: the number of the signal that came, 0 before. It can be entered again inside, where
    somebody else (Ray, when it starts) has put handlers in the place of these.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal = 0
        self.patient = False
        self._before: list[dict[signal.Signals, Any]] = []

    @property
    def name(self) -> str:
        return signal.Signals(self.signal).name if self.signal else "another command"

    @property
    def status(self) -> int:
        """What the command exits with when it was stopped, as shells have it."""
        return 128 + (self.signal or signal.SIGTERM)

    def __enter__(self) -> Self:
        self._before.append({n: signal.signal(n, self._note) for n in self.SIGNALS})
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.pop().items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        at_once = self.signal or not self.patient
        self.signal = number
        if at_once:
            raise StoppedAtOnce(128 + number)
