"""Ctrl-C and SIGTERM as a wish that is honoured at the next step, with a checkpoint on disk."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Self


class Stop:
    """The first Ctrl-C or SIGTERM is noted, for the run to stop at; a second one ends the command
    at once.

    signal: the number of the signal that came, 0 before.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal:
            raise SystemExit(128 + number)
        self.signal = number
