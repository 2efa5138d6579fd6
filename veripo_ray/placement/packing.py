"""Bundles onto nodes, and within a node onto GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from veripo_ray.placement.cluster import Node
from veripo_ray.placement.roles import Bundle, Role

_DUST = 1e-6  # sums of fractions


@dataclass(frozen=True, slots=True)
class Placed:
    """A bundle and its place. gpus: numbers of GPUs on the node, as the plan counts them; Ray
    chooses which these are."""

    bundle: Bundle
    node: Node
    gpus: tuple[int, ...] = ()


@dataclass(slots=True)
class _Room:
    """What is left of a node. gpus: of each GPU the part that is free."""

    node: Node
    cpus: float
    gpus: list[float] = field(default_factory=list)
    ranks: int = 0

    @classmethod
    def of(cls, node: Node) -> _Room:
        whole = int(node.gpus + _DUST)
        rest = node.gpus - whole
        return cls(node, node.cpus, [1.0] * whole + ([rest] if rest > _DUST else []))

    @property
    def free(self) -> float:
        return sum(self.gpus)

    def choose(self, bundle: Bundle) -> tuple[int, ...] | None:
        """The GPUs that the bundle would get here; None when it does not fit."""
        if bundle.cpus > self.cpus + _DUST:
            return None
        wanted = bundle.gpus
        if wanted >= 1:
            whole = [n for n, part in enumerate(self.gpus) if part > 1 - _DUST]
            return tuple(whole[: int(wanted)]) if len(whole) >= wanted else None
        if not wanted:
            return ()
        parts = [(part, n) for n, part in enumerate(self.gpus) if part >= wanted - _DUST]
        return (min(parts)[1],) if parts else None

    def take(self, bundle: Bundle, gpus: Sequence[int]) -> Placed:
        self.cpus -= bundle.cpus
        for number in gpus:
            self.gpus[number] -= min(bundle.gpus, 1.0)
        self.ranks += bundle.has(Role.LEARNER)
        return Placed(bundle, self.node, tuple(gpus))


def pack(
    bundles: Iterable[Bundle], nodes: Iterable[Node], *, spread: bool
) -> tuple[list[Placed], list[Bundle]]:
    """Place bundles, the widest first; (those that found a place, those that did not).

    Learner ranks go to as few nodes as will do, or with `spread` to as many; everything else where
    it leaves the least room, so that wide bundles find some.
    """
    rooms = [_Room.of(node) for node in nodes]
    placed: list[Placed] = []
    left: list[Bundle] = []
    for bundle in sorted(bundles, key=_width, reverse=True):
        fits = [(room, gpus) for room in rooms if (gpus := room.choose(bundle)) is not None]
        if not fits:
            left.append(bundle)
            continue
        room, gpus = min(fits, key=lambda fit: _preference(fit[0], bundle, spread))
        placed.append(room.take(bundle, gpus))
    return placed, left


def _width(bundle: Bundle) -> tuple[float, bool, float]:
    return bundle.gpus, bundle.has(Role.LEARNER), bundle.cpus


def _preference(room: _Room, bundle: Bundle, spread: bool) -> tuple[float, ...]:
    """Smaller is better."""
    if not bundle.has(Role.LEARNER):
        return (room.free, room.cpus) if bundle.gpus else (room.cpus, room.free)
    if spread:
        return room.ranks, -room.free, -room.cpus
    return -room.ranks, -room.free, -room.cpus
