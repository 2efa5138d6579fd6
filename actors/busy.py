"""Wall seconds during which work that overlaps itself was going on, none counted twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Busy:
    """`with busy.work():` around each piece; `take` gives the seconds since the last `take` in
    which at least one piece was open."""

    def __init__(self) -> None:
        self._open, self._since, self._seconds = 0, 0.0, 0.0

    @contextmanager
    def work(self) -> Iterator[None]:
        if self._open == 0:
            self._since = time.monotonic()
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            if self._open == 0:
                self._seconds += time.monotonic() - self._since

    def take(self) -> float:
        now = time.monotonic()
        if self._open:
            self._seconds += now - self._since
            self._since = now
        taken, self._seconds = self._seconds, 0.0
        return taken
