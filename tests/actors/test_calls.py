"""No wait for an actor is without a limit, and its error is its own."""

from __future__ import annotations

import asyncio
import time

import pytest
import ray

from actors.calls import result_now, result_of, results_of
from veripo_ray.errors import DataError, ResourceError


@pytest.fixture
def worker(ray_session: str):
    class Worker:
        def answer(self, value: int) -> int:
            return value

        def fail(self) -> None:
            raise DataError("clip.mp4: no video stream", fix="replace it")

        def hang(self) -> None:
            time.sleep(30)

        def die(self) -> None:
            ray.actor.exit_actor()

    actor = ray.remote(Worker).options(num_cpus=0).remote()
    yield actor
    ray.kill(actor)


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

    with pytest.raises(ResourceError, match="an actor of the run died") as caught:
        asyncio.run(ask())
    assert "--resume" in caught.value.fix
