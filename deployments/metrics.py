"""What the endpoint measures of itself, through Ray's Prometheus exporter.

Ray prefixes every name with `ray_` and adds the tags of Serve: application, deployment, replica.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ray.serve import metrics

from veripo_ray.records import Check, Verdict
from veripo_ray.verifier.judges.breaker import Breaker, State

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]
_STATES = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}


class Metrics:
    """One replica's. Made inside the replica, whose tags they take."""

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

    def request(self, path: str, status: int, seconds: float) -> None:
        self._seconds.observe(seconds, {"path": path, "status": str(status)})

    def in_flight(self, requests: int, items: int) -> None:
        self._requests.set(requests, {})
        self._items.set(items, {})

    def verdicts(self, judge: str, verdicts: Sequence[Verdict]) -> None:
        done = Counter((c.name, outcome(c)) for verdict in verdicts for c in verdict.checks)
        for (check, how), count in done.items():
            self._verdicts.inc(count, {"check": check, "outcome": how})
        if errors := done["consistency", "error"]:
            self._judge_errors.inc(errors, {"judge": judge})

    def breakers(self, breakers: Mapping[str, Breaker]) -> None:
        for judge, breaker in breakers.items():
            self._breaker.set(_STATES[breaker.state], {"judge": judge})


def outcome(check: Check) -> str:
    if check.error is not None:
        return "error"
    return {True: "passed", False: "failed", None: "undecided"}[check.passed]
