"""The nearest changes of a recipe with which it fits a cluster, each proven by planning again."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from pydantic import ValidationError

from veripo_ray import config
from veripo_ray.errors import ConfigError
from veripo_ray.placement.cluster import Cluster, Node
from veripo_ray.placement.geometry import Geometry
from veripo_ray.placement.plan import Plan, attempt
from veripo_ray.placement.roles import on_gpus

SHOWN = 3
_ATTEMPTS = 800  # plans tried for changes of one or two settings: well under a second
_NODES = 64
_EITHER = (
    "placement.layout",
    "placement.sleep_level",
    "rollout.tensor_parallel",
    "rollout.gpu_memory_utilization",
)


@dataclass(frozen=True, slots=True)
class Change:
    """One setting and its new value. cost: how far it leads from the recipe; what changes speed
    alone costs least, what changes the method most."""

    key: str
    value: Any
    cost: float

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else f"{self.value}"
        return f"{self.key}={value}"


Changes = tuple[Change, ...]


class Remedies:
    """Searches for what makes a run fit."""

    def __init__(self, run: config.Run, cluster: Cluster, model: Geometry | None) -> None:
        self._run, self._cluster, self._model = run, cluster, model
        self._options = _valid(run, _options(run, cluster))

    def nearest(self) -> list[Changes]:
        """At most SHOWN sets of changes, the nearest first, no one containing another's settings.
        Empty when nothing here helps."""
        found: list[Changes] = []
        for changes in self._small():
            keys = {change.key for change in changes}
            if any({c.key for c in other} <= keys for other in found) or not self.fits(changes):
                continue
            found.append(changes)
            if len(found) == SHOWN:
                break
        if not found and (far := self._far()):
            found.append(far)
        return found

    def fits(self, changes: Iterable[Change]) -> bool:
        """Whether the changed recipe is valid and has a plan."""
        changed = applied(self._run, {change.key: change.value for change in changes})
        try:
            fits = isinstance(attempt(changed, self._cluster, self._model), Plan)
        except ConfigError:
            return False
        return fits and _is_valid(changed)

    def _small(self) -> Iterator[Changes]:
        """Changes of one setting or two, the cheapest first."""
        lists = list(self._options.values())
        every: list[Changes] = [(change,) for options in lists for change in options]
        every += [pair for two in combinations(lists, 2) for pair in product(*two)]
        return iter(heapq.nsmallest(_ATTEMPTS, every, key=_cost))

    def _far(self) -> Changes | None:
        """Everything changed as far as it goes, then what need not be changed taken back. For
        settings of which neither end is the strongest, every value is tried."""
        strongest = {k: options[-1] for k, options in self._options.items() if k not in _EITHER}
        open_ = [[None, *self._options.get(key, ())] for key in _EITHER]
        for values in product(*open_):
            chosen = strongest | {change.key: change for change in values if change}
            if self.fits(chosen.values()):
                return self._relaxed(chosen)
        return None

    def _relaxed(self, chosen: dict[str, Change]) -> Changes:
        for key in sorted(chosen, key=lambda key: -chosen[key].cost):
            without = {other: change for other, change in chosen.items() if other != key}
            if self.fits(without.values()):
                chosen = without
                continue
            for option in self._options[key]:  # the nearest value that will do
                if self.fits({**chosen, key: option}.values()):
                    chosen = {**chosen, key: option}
                    break
        return tuple(chosen.values())


def more_nodes(
    run: config.Run, cluster: Cluster, model: Geometry | None
) -> tuple[int, Node] | None:
    """How many more nodes, equal to the largest there is, would do without any change."""
    if not cluster.nodes:
        return None
    like = max(cluster.nodes, key=lambda node: (node.gpus, node.cpus))
    for number in range(1, _NODES + 1):
        added = tuple(
            Node(f"new-{n}", like.cpus, like.gpus, like.gpu_memory, like.memory, like.gpu_kind)
            for n in range(number)
        )
        if isinstance(attempt(run, Cluster((*cluster.nodes, *added)), model), Plan):
            return number, like
    return None


def applied(run: config.Run, changes: Mapping[str, Any]) -> config.Run:
    """The run with these settings, by dotted key; not validated anew."""
    for key, value in changes.items():
        run = _with(run, key.split("."), value)
    return run


def _with(section: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    if rest:
        inner = getattr(section, name)
        value = _with(config.Lora() if inner is None else inner, rest, value)
    return section.model_copy(update={name: value})


def _is_valid(run: config.Run) -> bool:
    try:
        config.Run.model_validate(run.model_dump())
    except ValidationError:
        return False
    return True


def _valid(run: config.Run, options: dict[str, list[Change]]) -> dict[str, list[Change]]:
    """Without values that the recipe's other settings forbid."""
    kept = {
        key: [change for change in changes if _is_valid(applied(run, {key: change.value}))]
        for key, changes in options.items()
    }
    return {key: changes for key, changes in kept.items() if changes}


def _cost(changes: Changes) -> float:
    return sum(change.cost for change in changes)


def _options(run: config.Run, cluster: Cluster) -> dict[str, list[Change]]:
    """Other values of each setting that placement depends on, the nearest first."""
    every = {key: options for key, options in _of_everyone(run) if options}
    if on_gpus(run):
        gpus = int(cluster.total("GPU"))
        every |= {key: options for key, options in _of_gpus(run, gpus) if options}
    return every


def _of_everyone(run: config.Run) -> Iterator[tuple[str, list[Change]]]:
    yield _fewer("features.decoders", run.features.decoders, 0.5)
    yield _fewer("verifier.replicas", run.verifier.replicas, 0.5)
    yield _fewer("rollout.workers", run.rollout.workers, 2.0)
    if run.asks_vllm:
        judge = run.verifier.judges.vllm
        yield _fewer("verifier.judges.vllm.replicas", judge.replicas, 0.5)
        yield _fewer("verifier.judges.vllm.cpus", judge.cpus, 0.8)
    if not on_gpus(run):
        yield _fewer("learner.ranks", run.learner.ranks, 2.0)


def _of_gpus(run: config.Run, gpus: int) -> Iterator[tuple[str, list[Change]]]:
    rollout, learner, placement = run.rollout, run.learner, run.placement
    most = max(gpus, learner.ranks)
    yield _near("learner.ranks", learner.ranks, range(most, 0, -1), 2.0)
    stages = [stage for stage in (1, 2, 3) if stage > learner.zero_stage]
    yield _listed("learner.zero_stage", stages, [1 + 0.1 * n for n in stages])
    if not learner.gradient_checkpointing:
        yield _listed("learner.gradient_checkpointing", [True], [1.0])
    wide = [n for n in (1, 2, 4, 8) if n != rollout.tensor_parallel]
    yield _near("rollout.tensor_parallel", rollout.tensor_parallel, wide, 1.5)
    shares = [share / 100 for share in range(20, 96, 5)]
    yield _listed(
        "rollout.gpu_memory_utilization",
        sorted(shares, key=lambda share: abs(share - rollout.gpu_memory_utilization)),
        [1.0 + 0.01 * n for n in range(len(shares))],
    )
    if placement.layout == "separate":
        yield _listed("placement.layout", ["colocated"], [2.5])
    if placement.sleep_level == 1:
        yield _listed("placement.sleep_level", [2], [0.9])
    lengths = [length for n in (3, 2, 1) if (length := rollout.max_model_len * n // 4)]
    yield _near("rollout.max_model_len", rollout.max_model_len, lengths, 5.0)
    shorter = [rollout.max_tokens // n for n in (2, 4) if rollout.max_tokens >= n]
    yield _near("rollout.max_tokens", rollout.max_tokens, shorter, 4.0)
    budgets = [learner.micro_batch_tokens // n for n in (2, 4) if learner.micro_batch_tokens >= n]
    yield _near("learner.micro_batch_tokens", learner.micro_batch_tokens, budgets, 1.0)
    if learner.lora is None and not learner.train_vision:
        yield _listed("learner.lora.rank", [config.Lora().rank], [6.0])


def _fewer(key: str, value: int, cost: float) -> tuple[str, list[Change]]:
    return _near(key, value, range(1, value), cost)


def _near(key: str, value: int, others: Iterable[int], cost: float) -> tuple[str, list[Change]]:
    """Other numbers, the nearest first."""
    ways = {other: abs(math.log2(other / value)) for other in others if other != value}
    return _listed(
        key, sorted(ways, key=ways.__getitem__), [cost + w for w in sorted(ways.values())]
    )


def _listed(key: str, values: list[Any], costs: list[float]) -> tuple[str, list[Change]]:
    return key, [Change(key, value, cost) for value, cost in zip(values, costs, strict=True)]
