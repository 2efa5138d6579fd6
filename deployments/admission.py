"""How much a replica takes on at once. What is beyond it is refused at once, with 429."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable

from fastapi import Request

from deployments.metrics import Metrics
from deployments.refusal import Refusal
from deployments.settings import Args

_LONGEST_WAIT_S = 30


class Ticket:
    """One admitted request, the items that it turned out to hold, and those that got an error."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.items = self.errors = 0

    def take(self, items: int) -> None:
        """Count the request's items in. Raises Refusal when they are too many for now."""
        self._admission.take(items)
        self.items += items


class Pace:
    """Seconds that a replica spends on an item: those during which it had work, over the items
    that it finished. What is long past counts ever less."""

    _MEMORY_S = 4.0  # of overload that sets in, much more would be noticed too late

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since = clock, 0.0
        self._seconds = self._items = 0.0

    def begins(self) -> None:
        """There is work, and there was none."""
        self._since = self._clock()

    def finished(self, items: int) -> None:
        """Of the work since the last call, or since it began."""
        now = self._clock()
        self._seconds, self._items = self._seconds + now - self._since, self._items + items
        self._since = now
        if self._seconds > self._MEMORY_S:
            self._seconds, self._items = self._seconds / 2, self._items / 2

    @property
    def seconds_per_item(self) -> float:
        """0 before the first item."""
        return self._seconds / self._items if self._items else 0.0


class Admission:
    """Counts the requests at work and their items, on the event loop's thread alone.

    A request is counted before its body is read, so that bodies are bounded in number too; and
    refused when those at work will take longer than `max_wait_s`: before its body is read, and once
    more behind that, since of many that come at once none knows the items of the others before. So
    what is accepted under overload is answered about as soon as ever.
    """

    def __init__(self, args: Args, metrics: Metrics) -> None:
        self._max_requests, self._max_items = args.max_requests, args.max_pending_items
        self._max_wait_s = args.max_wait_s or args.timeout_s / 2
        self._metrics, self._pace = metrics, Pace()
        self._requests = self._items = 0

    @property
    def at_work(self) -> dict[str, int]:
        return {"requests": self._requests, "items": self._items}

    async def __call__(self, request: Request) -> AsyncIterator[None]:
        """A dependency of routes: in until the last byte of the reply, then out."""
        if self._requests >= self._max_requests:
            raise self._busy(f"{self._requests} requests are at work")
        self._refuse_waits()
        if not self._requests:
            self._pace.begins()
        self._requests += 1
        ticket = request.state.ticket = Ticket(self)
        self._metrics.in_flight(self._requests, self._items)
        finished = 0  # items of work that was given up tell nothing of the pace
        try:
            yield
            finished = ticket.items
        finally:
            self._leave(ticket, finished)

    def take(self, items: int) -> None:
        if self._items and self._items + items > self._max_items:
            raise self._busy(f"{self._items} items are at work")
        self._refuse_waits()
        self._items += items
        self._metrics.in_flight(self._requests, self._items)

    def _refuse_waits(self) -> None:
        if self._wait_s > self._max_wait_s:
            raise self._busy(f"what is at work takes {self._wait_s:.1f} s more")

    def _leave(self, ticket: Ticket, finished: int) -> None:
        self._requests -= 1
        self._items -= ticket.items
        self._pace.finished(finished)
        self._metrics.in_flight(self._requests, self._items)

    @property
    def _wait_s(self) -> float:
        """Until everything that is at work now is done, as far as the pace tells."""
        return self._items * self._pace.seconds_per_item

    def _busy(self, problem: str) -> Refusal:
        seconds = min(_LONGEST_WAIT_S, max(1, math.ceil(self._wait_s)))
        return Refusal(
            429,
            f"the verifier is busy: {problem}",
            f"try again in {seconds} s, or run it with more replicas",
            {"retry-after": str(seconds)},
        )


def ticket_of(request: Request) -> Ticket:
    """Of a request on a route that depends on an `Admission`."""
    ticket: Ticket = request.state.ticket
    return ticket
