"""Load on an HTTP endpoint: clients that ask in turn, or requests at a fixed rate."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Body:
    """A request's content, and how many verdicts its reply must hold."""

    content: bytes
    items: int


@dataclass
class Outcome:
    """statuses; seconds of the requests that were answered 200; seconds on the wall."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    items: int = 0
    wall: float = 0.0

    @property
    def rate(self) -> float:
        return self.items / self.wall

    def percentile_ms(self, percent: int) -> float:
        if len(self.seconds) < 2:
            return 1e3 * sum(self.seconds)
        cuts = statistics.quantiles(self.seconds, n=100, method="inclusive")
        return 1e3 * cuts[percent - 1]


def closed(url: str, bodies: Sequence[Body], clients: int) -> Outcome:
    """So many clients share the bodies; each sends its next request when its last is answered."""
    return asyncio.run(_closed(url, bodies, clients))


async def _closed(url: str, bodies: Sequence[Body], clients: int) -> Outcome:
    outcome, left = Outcome(), iter(bodies)

    async def client() -> None:
        for body in left:
            await _ask(http, url, body, outcome)

    async with _client(clients) as http:
        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        outcome.wall = time.perf_counter() - started
    return outcome


def opened(url: str, bodies: Sequence[Body], per_second: float) -> Outcome:
    """Every body is sent at its time, whatever became of those before it."""
    return asyncio.run(_opened(url, bodies, per_second))


async def _opened(url: str, bodies: Sequence[Body], per_second: float) -> Outcome:
    outcome = Outcome()
    async with _client(None) as http, asyncio.TaskGroup() as group:
        started = time.perf_counter()
        for number, body in enumerate(bodies):
            await asyncio.sleep(max(0.0, started + number / per_second - time.perf_counter()))
            group.create_task(_ask(http, url, body, outcome))
    outcome.wall = time.perf_counter() - started
    return outcome


def _client(connections: int | None) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(limits=limits, timeout=TIMEOUT_S, verify=False)


async def _ask(http: httpx.AsyncClient, url: str, body: Body, outcome: Outcome) -> None:
    started = time.perf_counter()
    headers = {"content-type": "application/json"}
    reply = await http.post(url, content=body.content, headers=headers)
    outcome.statuses[reply.status_code] += 1
    if reply.status_code == 200:
        outcome.seconds.append(time.perf_counter() - started)
        outcome.items += _verdicts(reply, body)


def _verdicts(reply: httpx.Response, body: Body) -> int:
    found = reply.content.count(b'"checks"')
    if found != body.items:
        raise SystemExit(f"a request of {body.items} rollouts was answered with {found} verdicts")
    return found
