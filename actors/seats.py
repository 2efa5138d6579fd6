"""Placement groups of a run: what its plan says, held on the cluster before any actor starts.

The encoder, the reference and the learner ranks, which a run cannot do without, are one group; each
rollout worker with GPUs of its own has another, so that it may come and go alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.machines import cluster_now
from veripo_ray import config
from veripo_ray.errors import ResourceError
from veripo_ray.placement import Bundle, Placed, Plan, Role, plan
from veripo_ray.placement.cluster import told

_NODE = "ray.io/node-id"


@dataclass(frozen=True, slots=True)
class _Seat:
    group: PlacementGroup
    index: int
    cpus: float
    gpus: float

    @property
    def options(self) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(
            self.group, placement_group_bundle_index=self.index
        )
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": strategy}


class Seats:
    """Resources that are held for the actors of a run, until `release`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._seats: dict[tuple[Role, int], _Seat] = {}
        self._groups: list[PlacementGroup] = []

    @classmethod
    async def take(cls, run: config.Run) -> Seats:
        """Plan the run on what the cluster has free, or else on all it has, and hold that.

        Ray Serve's replicas have theirs already. Raises ResourceError when the run does not fit, or
        when the resources are not free within `placement.deadline_s`; nothing is held then.
        """
        seats = cls(plan_now(run))
        core = [p for p in seats.plan.placed if not _alone(p.bundle)]
        others = [[p] for p in seats.plan.placed if _alone(p.bundle)]
        await seats._hold([core, *others])
        return seats

    def of(self, role: Role, number: int = 0) -> dict[str, Any]:
        """Options of the actor class: its resources, in their place."""
        return self._seats[role, number].options

    async def _hold(self, parts: Sequence[Sequence[Placed]]) -> None:
        """Create a group of each part, and wait for all of them."""
        groups = [(part, _group(part)) for part in parts]
        self._groups += [group for _, group in groups]
        deadline_s = self.plan.run.placement.deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.gather(*(_ready(group) for _, group in groups))
        except BaseException as error:
            problem = _lapsed(groups, deadline_s)
            self.release()
            if isinstance(error, TimeoutError):
                raise problem from None
            raise
        for part, group in groups:
            for index, placed in enumerate(part):
                for process in placed.bundle.processes:
                    seat = _Seat(group, index, process.cpus, process.gpus)
                    self._seats[process.role, process.number] = seat

    def release(self) -> None:
        """Give everything back; actors that still sit there end."""
        for group in self._groups:
            remove_placement_group(group)
        self._groups.clear()
        self._seats.clear()


def plan_now(run: config.Run) -> Plan:
    """On what is free; where that is too little on all there is, which may become free."""
    try:
        return plan(run, cluster_now(free=True), served=False)
    except ResourceError:
        return plan(run, cluster_now(), served=False)


def _alone(bundle: Bundle) -> bool:
    """Whether it is a rollout worker by itself."""
    return all(process.role == Role.ROLLOUT for process in bundle.processes)


def _group(part: Sequence[Placed]) -> PlacementGroup:
    return placement_group(
        [_resources(placed.bundle) for placed in part],
        strategy="PACK",  # the plan has chosen the nodes
        bundle_label_selector=[{_NODE: placed.node.id} for placed in part],
    )


def _resources(bundle: Bundle) -> dict[str, float]:
    return {"CPU": bundle.cpus, **({"GPU": bundle.gpus} if bundle.gpus else {})}


async def _ready(group: PlacementGroup) -> None:
    await group.ready()


def _lapsed(
    groups: Iterable[tuple[Sequence[Placed], PlacementGroup]], deadline_s: float
) -> ResourceError:
    """Which bundles are missing, and what the cluster has."""
    short = [
        _told(placed)
        for part, group in groups
        if placement_group_table(group)["state"] != "CREATED"
        for placed in part
    ]
    return ResourceError(
        f"not free within placement.deadline_s = {deadline_s:g}: {'; '.join(short)}. Free now: "
        f"{told(cluster_now(free=True).nodes)}, of {told(cluster_now().nodes)}",
        fix="wait for who uses them (`ray status`), add nodes, or raise placement.deadline_s",
    )


def _told(placed: Placed) -> str:
    who = ", ".join(f"{process.role} {process.number}" for process in placed.bundle.processes)
    bundle = placed.bundle
    return f"{bundle.cpus:g} CPUs and {bundle.gpus:g} GPUs on {placed.node.id[:8]} for {who}"
