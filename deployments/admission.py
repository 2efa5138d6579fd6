"""How much a replica takes on at once. What is beyond it is refused at once, with 429."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator

from fastapi import Request

from deployments.metrics import Metrics
from deployments.refusal import Refusal
from deployments.settings import Args

_LONGEST_WAIT_S = 30


class Ticket:
    """One admitted request, the items that it turned out to hold, and those that got an error."""

    def __init__(self, admission: Admission) -> None:
        self._admission, self.since = admission, time.monotonic()
        self.items = self.errors = 0

    def take(self, items: int) -> None:
        """Count the request's items in. Raises Refusal when they are too many for now."""
        self._admission.take(items)
        self.items += items


class Admission:
    """Counts the requests at work and their items, on the event loop's thread alone.

    A request is counted before its body is read, so that bodies are bounded in number too.
    """

    def __init__(self, args: Args, metrics: Metrics) -> None:
        self._max_requests, self._max_items = args.max_requests, args.max_pending_items
        self._metrics = metrics
        self._requests = self._items = 0
        self._typical_s = 0.0  # how long requests take of late

    @property
    def at_work(self) -> dict[str, int]:
        return {"requests": self._requests, "items": self._items}

    async def __call__(self, request: Request) -> AsyncIterator[None]:
        """A dependency of routes: in until the last byte of the reply, then out."""
        if self._requests >= self._max_requests:
            raise self._busy(f"{self._requests} requests are at work")
        self._requests += 1
        ticket = request.state.ticket = Ticket(self)
        self._metrics.in_flight(self._requests, self._items)
        try:
            yield
        finally:
            self._leave(ticket)

    def take(self, items: int) -> None:
        if self._items and self._items + items > self._max_items:
            raise self._busy(f"{self._items} items are at work")
        self._items += items
        self._metrics.in_flight(self._requests, self._items)

    def _leave(self, ticket: Ticket) -> None:
        self._requests -= 1
        self._items -= ticket.items
        self._typical_s += 0.1 * (time.monotonic() - ticket.since - self._typical_s)
        self._metrics.in_flight(self._requests, self._items)

    def _busy(self, problem: str) -> Refusal:
        seconds = min(_LONGEST_WAIT_S, max(1, math.ceil(self._typical_s)))
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
