"""Placement groups of a run: what its plan says, held on the cluster before any actor starts.

The encoder, the reference and the learner ranks, which a run cannot do without, are one group; each
rollout worker with GPUs of its own has another, so that it may come and go alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterable, Sequence
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
from veripo_ray.errors import LostError, ResourceError
from veripo_ray.placement import Bundle, Placed, Plan, Role, attempt, plan
from veripo_ray.placement.cluster import told

LOOK_S = 1.0  # at whether the nodes are still there
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

        Ray Serve's replicas ask for theirs themselves. Raises ResourceError when the run does not
        fit, or what it needs is not free within `placement.deadline_s`; nothing is held then.
        """
        while True:
            seats = cls(plan_now(run))
            ours = [placed for placed in seats.plan.placed if not placed.bundle.served]
            core = [placed for placed in ours if not _alone(placed.bundle)]
            others = [[placed] for placed in ours if _alone(placed.bundle)]
            try:
                await seats._hold([core, *others])
                return seats
            except LostError:
                continue  # a node of the plan is no more: there is another plan, or an error

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
                await _unless_gone(
                    asyncio.gather(*(_ready(group) for _, group in groups)),
                    {placed.node.id for placed in self.plan.placed},
                )
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

    async def another(self, number: int, limit_s: float) -> None:
        """A seat for a rollout worker that joins: that of the one whose place it takes where others
        sit beside it, else a new one wherever the cluster finds room within `limit_s`."""
        bundle = self._bundle(number)
        if not _alone(bundle):
            return
        group = placement_group([_resources(bundle)], strategy="PACK")
        self._groups.append(group)
        process = bundle.processes[0]
        self._seats[Role.ROLLOUT, number] = _Seat(group, 0, process.cpus, process.gpus)
        try:
            async with asyncio.timeout(limit_s):
                await _ready(group)
        except TimeoutError:
            raise ResourceError(
                f"not free within rollout.join_timeout_s = {limit_s:g}: {bundle.cpus:g} CPUs and "
                f"{bundle.gpus:g} GPUs on one node for rollout worker {number}",
                fix="add nodes, or wait for who uses them (`ray status`)",
            ) from None

    def leave(self, number: int) -> None:
        """Give back the seat of a rollout worker, if it has one to itself."""
        seat = self._seats.get((Role.ROLLOUT, number))
        if seat and _alone(self._bundle(number)):
            del self._seats[Role.ROLLOUT, number]
            self._groups.remove(seat.group)
            remove_placement_group(seat.group)

    def _bundle(self, number: int) -> Bundle:
        """Of a rollout worker; those beyond the plan are like its first."""
        planned = number < self.plan.run.rollout.workers
        return self.plan.seat(Role.ROLLOUT, number if planned else 0).bundle

    def release(self) -> None:
        """Give everything back; actors that still sit there end."""
        for group in self._groups:
            remove_placement_group(group)
        self._groups.clear()
        self._seats.clear()


def plan_now(run: config.Run) -> Plan:
    """On what is free, with room for the replicas of Ray Serve or beside them; where that is too
    little on all there is, which may become free."""
    free = cluster_now(free=True)
    for served in (True, False):
        if isinstance(found := attempt(run, free, served=served), Plan):
            return found
    return plan(run, cluster_now())


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


async def _unless_gone(ready: Awaitable[Any], nodes: Collection[str]) -> None:
    """Wait for it while these nodes live; LostError when one does not, which Ray may have noticed
    only after it was chosen."""
    waiting = asyncio.ensure_future(ready)
    try:
        while not (await asyncio.wait([waiting], timeout=LOOK_S))[0]:
            if gone := set(nodes) - {node.id for node in cluster_now().nodes}:
                raise LostError(f"nodes {', '.join(sorted(gone))} are gone")
        waiting.result()
    finally:
        waiting.cancel()


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
