"""A circuit breaker: a server that keeps failing is left alone for a while.

    closed     cases pass; so many failures in a row open the circuit
    open       no case passes, each fails at once; after a pause the next one finds it half-open
    half_open  one case passes, on trial, and no other until it is over:
               it succeeds -> closed; it fails -> open again; it is given up -> open, pause over

There is no way from open to closed but through a trial. What was let through before a transition
says nothing about the state after it: late successes and failures are ignored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """failures: in a row, to open; pause_s: seconds until a trial. Not thread-safe: one event loop
    uses it."""

    def __init__(
        self, failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit, self._pause_s, self._clock = failures, pause_s, clock
        self._state, self._failed, self._retry_at, self._term = State.CLOSED, 0, 0.0, 0

    @property
    def state(self) -> State:
        """An open circuit is half-open only once a trial runs."""
        return self._state

    @property
    def wait_s(self) -> float:
        """Seconds until an open circuit lets a case try; 0 where it is not open."""
        return max(0.0, self._retry_at - self._clock()) if self._state is State.OPEN else 0.0

    def admit(self) -> int | None:
        """A pass, to be handed back with the outcome exactly once; None: the case may not try."""
        if self._state is State.HALF_OPEN or self.wait_s > 0:
            return None
        if self._state is State.OPEN:
            self._enter(State.HALF_OPEN)
        return self._term

    def succeeded(self, admitted: int) -> None:
        if admitted != self._term:
            return
        self._failed = 0
        if self._state is State.HALF_OPEN:
            self._enter(State.CLOSED)

    def failed(self, admitted: int) -> None:
        if admitted != self._term:
            return
        self._failed += 1
        if self._state is State.HALF_OPEN or self._failed >= self._limit:
            self._open(self._pause_s)

    def given_up(self, admitted: int) -> None:
        """Neither: the case was cancelled, or was at fault itself."""
        if admitted == self._term and self._state is State.HALF_OPEN:
            self._open(0.0)

    def _open(self, pause_s: float) -> None:
        self._retry_at = self._clock() + pause_s
        self._enter(State.OPEN)

    def _enter(self, state: State) -> None:
        self._state, self._failed = state, 0
        self._term += 1
