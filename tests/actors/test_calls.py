"""No wait for an actor is without a limit, and its error is its own."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.exceptions import RayTaskError

from actors.calls import result_now, result_of, results_of
from veripo_ray.errors import DataError, LostError, ResourceError


class _Worker:
    def answer(self, value: int) -> int:
        return value

    def fail(self) -> None:
        raise DataError("clip.mp4: no video stream", fix="replace it")

    def complain(self) -> None:
        raise RuntimeError("connection closed by peer")

    def hang(self) -> None:
        time.sleep(30)

    def die(self, after_s: float = 0.0) -> None:
        time.sleep(after_s)
        ray.actor.exit_actor()


@pytest.fixture
def workers(ray_session: str) -> Iterator[list[Any]]:
    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)  # actors cannot import this module
    actors = [ray.remote(_Worker).options(num_cpus=0).remote() for _ in range(2)]
    cloudpickle.unregister_pickle_by_value(here)
    yield actors
    for actor in actors:
        ray.kill(actor)


@pytest.fixture
def worker(workers: list[Any]) -> Any:
    return workers[0]


def test_answers_come_in_the_order_of_the_calls(worker) -> None:
    async def ask() -> list[int]:
        return await results_of([worker.answer.remote(n) for n in range(3)], 60, "three answers")

    assert asyncio.run(ask()) == [0, 1, 2]
    assert result_now(worker.answer.remote(7)) == 7


def test_an_actors_error_comes_out_as_itself(worker) -> None:
    async def ask() -> None:
        await result_of(worker.fail.remote(), 60, "decoding")

    with pytest.raises(DataError) as caught:
        asyncio.run(ask())
    assert type(caught.value) is DataError
    assert str(caught.value) == "clip.mp4: no video stream\n  fix: replace it"
    with pytest.raises(DataError, match="no video stream"):
        result_now(worker.fail.remote())


def test_a_call_that_hangs_ends_at_the_limit_and_says_what_hung(worker) -> None:
    async def ask() -> None:
        await result_of(worker.answer.remote(0), 60, "starting")
        await result_of(worker.hang.remote(), 0.2, "a grpo step")

    with pytest.raises(ResourceError, match=r"a grpo step took longer than call_timeout_s = 0.2"):
        asyncio.run(ask())


def test_a_dead_actor_is_told_with_the_way_to_go_on(worker) -> None:
    async def ask() -> None:
        await result_of(worker.die.remote(), 60, "a dpo step")

    with pytest.raises(LostError, match="Worker died") as caught:
        asyncio.run(ask())
    assert "--resume" in caught.value.fix


def test_the_loss_of_an_actor_is_told_rather_than_what_the_others_make_of_it(workers) -> None:
    """Learner ranks hear of a lost one from its closed connections, before Ray does."""

    async def ask(*calls: Any) -> None:
        await results_of(calls, 60, "a grpo step")

    with pytest.raises(LostError, match="Worker died"):
        asyncio.run(ask(workers[0].complain.remote(), workers[1].die.remote(2.0)))
    with pytest.raises(RayTaskError, match="closed by peer"):  # and all are well
        asyncio.run(ask(workers[0].complain.remote()))
