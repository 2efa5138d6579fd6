"""Seats on a real Ray: held as planned, given back, and never waited for without an end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from actors.machines import cluster_now
from actors.seats import Seats
from veripo_ray import config
from veripo_ray.errors import ResourceError
from veripo_ray.placement import Role


def _run(**sections: dict) -> config.Run:
    return config.Run.model_validate(
        {
            "model": "tinyworld",
            "output": Path("unused"),
            "device": "cpu",
            "schedule": [{"phase": "grpo"}],
            "data": {"tinyworld": {}},
            **sections,
        }
    )


def _groups(state: str) -> int:
    return sum(table["state"] == state for table in placement_group_table().values())


def _start(seats: Seats, role: Role, number: int) -> ray.actor.ActorHandle:
    """An actor in that seat. Its class is made here, so that it travels with its code."""

    class Who:
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    return ray.remote(Who).options(**seats.of(role, number)).remote()


def test_every_actor_sits_on_the_node_of_the_plan_and_gives_its_seat_back(
    ray_session: str,
) -> None:
    run = _run(learner={"ranks": 2}, rollout={"workers": 2})
    before = _groups("CREATED")
    seats = asyncio.run(Seats.take(run))
    actors = {
        (role, number): _start(seats, role, number)
        for role, count in ((Role.ROLLOUT, 2), (Role.LEARNER, 2), (Role.ENCODER, 1))
        for number in range(count)
    }
    for (role, number), actor in actors.items():
        assert ray.get(actor.node.remote()) == seats.plan.seat(role, number).node.id
        ray.kill(actor)
    assert _groups("CREATED") > before
    seats.release()
    assert _groups("CREATED") == before


def test_what_is_not_free_in_time_is_named_and_nothing_stays_held(ray_session: str) -> None:
    cpus = cluster_now().total("CPU")
    taken = placement_group([{"CPU": cpus - 2}])
    ray.get(taken.ready())
    held = _groups("CREATED")
    run = _run(placement={"deadline_s": 0.5}, rollout={"workers": 2})
    with pytest.raises(ResourceError) as refused:
        asyncio.run(Seats.take(run))
    said = str(refused.value)
    assert "placement.deadline_s = 0.5" in said
    assert "2 CPUs and 0 GPUs" in said
    assert "for encoder 0" in said
    assert f"{cpus:g} CPUs" in said
    assert _groups("CREATED") == held
    assert _groups("PENDING") == 0
    remove_placement_group(taken)


def test_one_more_worker_is_a_demand_that_the_cluster_sees_until_it_has_room(
    ray_session: str,
) -> None:
    async def another() -> None:
        seats = await Seats.take(_run(rollout={"workers": 1, "max_workers": 2}))
        try:
            taken = placement_group([{"CPU": cluster_now(free=True).total("CPU")}])
            await taken.ready()
            asking = asyncio.ensure_future(seats.another(1, limit_s=60))
            while not _groups("PENDING"):  # what an autoscaler adds nodes for
                assert not asking.done()
                await asyncio.sleep(0.05)
            remove_placement_group(taken)
            await asking
            assert seats.of(Role.ROLLOUT, 1)["num_cpus"] > 0
        finally:
            seats.release()

    asyncio.run(asyncio.wait_for(another(), 120))
