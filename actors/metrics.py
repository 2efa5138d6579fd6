"""What a run measures of itself, through Ray's Prometheus exporter.

Each process of the run has the metrics below and sets those that it knows. Ray prefixes the names
with `ray_` and adds tags of its own (node, job). Tags are few: a run, its kinds of phase, its
actors; what grows with the data is never one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.util import metrics

from actors import whereabouts
from actors.whereabouts import Where
from veripo_ray.runlog import Cost

if TYPE_CHECKING:
    from veripo_ray.sampler import Sampled, SampleRequest

P = ParamSpec("P")
R = TypeVar("R")
SECONDS = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0]
PHASES = ("starting", "evaluation", "grpo", "dpo")

# Name: what it is, and its tags.
GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "veripo_phase": ("1 for the phase that the run is in, 0 for the others", ("run", "phase")),
    "veripo_iteration": ("one grpo and the dpo after it, from 1", ("run",)),
    "veripo_step": ("of the phase", ("run", "phase")),
    "veripo_policy_version": ("weight updates published", ("run",)),
    "veripo_step_value": ("of the last step, as in metrics.jsonl", ("run", "phase", "figure")),
    "veripo_logprob_gap": ("rollout worker against learner, the phase's largest, nats", ("run",)),
    "veripo_spent_seconds": ("wall seconds so far, by part of the work", ("run", "phase", "part")),
    "veripo_groups_unjudged": ("groups on their way through the verifier", ("run",)),
    "veripo_features_live": ("clips whose features are kept in the object store", ("run",)),
    "veripo_pairs": ("of this phase", ("run",)),
    "veripo_left_out": ("questions that could not be used", ("run",)),
    "veripo_media": ("clips so far; kind: decodes, encodes, cache_hits", ("run", "kind")),
}
COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "veripo_rollout_tokens": ("tokens sampled", ("run", "phase", "worker")),
    "veripo_rollout_groups": ("groups sampled", ("run", "phase", "worker")),
    "veripo_busy_seconds": ("seconds at work", ("run", "phase", "worker", "work")),
}
HISTOGRAMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "veripo_group_seconds": ("from a question's turn to its group", ("run", "phase", "worker")),
}


@cache
def _gauge(name: str) -> metrics.Gauge:
    return metrics.Gauge(name, *GAUGES[name])


@cache
def _counter(name: str) -> metrics.Counter:
    return metrics.Counter(name, *COUNTERS[name])


@cache
def _histogram(name: str) -> metrics.Histogram:
    said, tags = HISTOGRAMS[name]
    return metrics.Histogram(name, said, SECONDS, tags)


class RunMetrics:
    """The coordinator's. Without Ray, as in tests of the loop alone, it does nothing."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}

    def set(self, name: str, value: float, **tags: str) -> None:
        if ray.is_initialized():
            _gauge(name).set(value, self._tags | tags)

    def phase(self, now: str) -> None:
        for phase in {*PHASES, now}:
            self.set("veripo_phase", float(phase == now), phase=phase)

    def step(self, phase: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.set("veripo_step_value", value, phase=phase, figure=name)

    def spent(self, cost: Mapping[str, Cost]) -> None:
        for kind, spent in cost.items():
            for part, seconds in spent.parts.items():
                self.set("veripo_spent_seconds", seconds, phase=kind, part=part)


class Worker:
    """Of an actor that works: who it is in the run's metrics and log."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._log = whereabouts.Log(name)

    def begins(self) -> Where:
        """Look up where the run stands; what is measured and logged from now on belongs there."""
        self._log.where = whereabouts.look()
        return self._log.where

    def worked(self, work: str, seconds: float) -> None:
        self._count("veripo_busy_seconds", seconds, work=work)

    def media(self, counts: Mapping[str, int]) -> None:
        """Clips so far."""
        run = self._log.where.run
        for kind in ("decodes", "encodes", "cache_hits"):
            _gauge("veripo_media").set(counts[kind], {"run": run, "kind": kind})

    def sampling(
        self,
        asked: Iterable[SampleRequest],
        sample: Callable[[Iterator[SampleRequest]], Generator[list[Sampled]]],
    ) -> Iterator[list[Sampled]]:
        """`sample(asked)`, measured."""
        self.begins()
        since: dict[str, float] = {}

        def timed() -> Iterator[SampleRequest]:
            for request in asked:
                since[request.id] = time.monotonic()
                yield request

        with closing(sample(timed())) as bundles:
            for groups in bundles:
                now = time.monotonic()
                for group in groups:
                    self._observe("veripo_group_seconds", now - since.pop(group.id))
                tokens = sum(len(r.token_ids) for group in groups for r in group.rollouts)
                self._count("veripo_rollout_tokens", tokens)
                self._count("veripo_rollout_groups", len(groups))
                yield groups

    def _tags(self) -> dict[str, str]:
        where = self._log.where
        return {"run": where.run, "phase": where.phase, "worker": self.name}

    def _count(self, name: str, value: float, **tags: str) -> None:
        if value > 0:
            _counter(name).inc(value, self._tags() | tags)

    def _observe(self, name: str, value: float) -> None:
        _histogram(name).observe(value, self._tags())


def measured(
    method: Callable[Concatenate[Any, P], R],
) -> Callable[Concatenate[Any, P], R]:
    """A method of an actor that has a `worker`: its seconds are work of the phase it began in."""

    @wraps(method)
    def wrapped(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        self.worker.begins()
        started = time.monotonic()
        try:
            return method(self, *args, **kwargs)
        finally:
            self.worker.worked(method.__name__, time.monotonic() - started)

    return wrapped
