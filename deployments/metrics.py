"""What the endpoint measures of itself, through Ray's Prometheus exporter.

Ray prefixes every name with `ray_` and adds the tags of Serve: application, deployment, replica.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from ray.serve import metrics

from veripo_ray.records import Check, Verdict
from veripo_ray.verifier.judges.breaker import Breaker, State

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]
_EVERY_S = 0.25
_STATES = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}


class Metrics:
    """One replica's. Made inside the replica, whose tags they take; used on its event loop."""

    def __init__(self) -> None:
        self._seconds = metrics.Histogram(
            "veripo_verifier_request_seconds",
            "from the request's arrival to the last byte of its reply",
            SECONDS,
            ("path", "status"),
        )
        self._requests = metrics.Gauge(
            "veripo_verifier_requests_in_flight", "requests that the replica has admitted"
        )
        self._items = metrics.Gauge(
            "veripo_verifier_items_in_flight", "items of the requests that it has admitted"
        )
        self._verdicts = metrics.Counter(
            "veripo_verifier_checks",
            "checks done; outcome: passed, failed, undecided or error",
            ("check", "outcome"),
        )
        self._judge_errors = metrics.Counter(
            "veripo_verifier_judge_errors", "cases that a judge failed on", ("judge",)
        )
        self._breaker = metrics.Gauge(
            "veripo_verifier_breaker_state",
            "of a judge's circuit breaker: 0 closed, 1 half-open, 2 open",
            ("judge",),
        )
        self._at_work = 0, 0
        self._done: Counter[tuple[str, str]] = Counter()  # since they were last told
        self._failed: Counter[str] = Counter()
        self._breakers: Mapping[str, Breaker] = {}
        self._telling: tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle] | None = None

    def request(self, path: str, status: int, seconds: float) -> None:
        self._seconds.observe(seconds, {"path": path, "status": str(status)})

    def in_flight(self, requests: int, items: int) -> None:
        self._at_work = requests, items
        self._tell_soon()

    def verdicts(self, judge: str, verdicts: Sequence[Verdict]) -> None:
        done = Counter((c.name, outcome(c)) for verdict in verdicts for c in verdict.checks)
        self._done += done
        self._failed[judge] += done["consistency", "error"]
        self._tell_soon()

    def breakers(self, breakers: Mapping[str, Breaker]) -> None:
        self._breakers = breakers
        self._tell_soon()

    def _tell_soon(self) -> None:
        """To tell Ray each slice's counts at once would take a tenth of a replica's time."""
        loop = asyncio.get_running_loop()
        if self._telling is None or self._telling[0] is not loop:
            self._telling = loop, loop.call_later(_EVERY_S, self._tell)

    def _tell(self) -> None:
        self._telling = None
        requests, items = self._at_work
        self._requests.set(requests, {})
        self._items.set(items, {})
        for (check, how), count in self._done.items():
            self._verdicts.inc(count, {"check": check, "outcome": how})
        for judge, errors in self._failed.items():
            if errors:
                self._judge_errors.inc(errors, {"judge": judge})
        for judge, breaker in self._breakers.items():
            self._breaker.set(_STATES[breaker.state], {"judge": judge})
        self._done.clear()
        self._failed.clear()


def outcome(check: Check) -> str:
    if check.error is not None:
        return "error"
    return {True: "passed", False: "failed", None: "undecided"}[check.passed]
