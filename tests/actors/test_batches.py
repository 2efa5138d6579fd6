"""Rollout batches: one after the other, or one ahead of the learner and never more."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from actors.batches import Drawn, RolloutBatches
from veripo_ray.errors import DataError

STEPS = 4


class _World:
    """A policy whose version rises, and workers that note under which version they sampled."""

    def __init__(self) -> None:
        self.version = 0
        self.events: list[str] = []
        self.finished = 0

    async def draw(self, step: int, cursor: int) -> Drawn | None:
        return Drawn([f"q{cursor}", f"q{cursor + 1}"], cursor + 2) if step < STEPS else None

    async def sample(self, tasks: list[str], step: int) -> list[tuple[str, int]]:
        version = self.version
        self.events.append(f"sample {step}")
        await asyncio.sleep(0.01)
        assert self.version == version, "the weights changed while they were sampled from"
        self.finished += 1
        return [(task, version) for task in tasks]

    def batches(self, staleness: int, step: int = 0) -> RolloutBatches:
        return RolloutBatches(
            self.draw, self.sample, staleness=staleness, step=step, cursor=2 * step
        )

    async def train(self, staleness: int, step: int = 0) -> list[tuple[int, int, list[str]]]:
        """(learner's version, rollouts' version, questions) of every step."""
        seen = []
        async with aclosing(self.batches(staleness, step)) as batches:
            while batch := await batches.next():
                await asyncio.sleep(0.002)
                self.events.append(f"learn {step}")
                seen.append((self.version, batch.groups[0][1], list(batch.tasks)))
                assert batch.cursor == 2 * step + 2
                await batches.settled()
                self.version += 1
                step += 1
        return seen


def test_without_staleness_every_batch_is_of_the_present_weights() -> None:
    world = _World()
    seen = asyncio.run(world.train(0))
    assert [(learner, rollouts) for learner, rollouts, _ in seen] == [(n, n) for n in range(STEPS)]
    assert world.events == [f"{what} {n}" for n in range(STEPS) for what in ("sample", "learn")]


def test_with_staleness_the_next_batch_is_sampled_while_the_learner_steps() -> None:
    world = _World()
    seen = asyncio.run(world.train(1))
    versions = [(learner, rollouts) for learner, rollouts, _ in seen]
    assert versions == [(0, 0), (1, 0), (2, 1), (3, 2)]
    asked = [question for _, _, questions in seen for question in questions]
    assert asked == [f"q{n}" for n in range(2 * STEPS)]
    for step in range(STEPS - 1):
        assert world.events.index(f"sample {step + 1}") < world.events.index(f"learn {step}")
    assert world.events.count("sample 1") == 1


def test_who_resumes_begins_with_the_batch_that_was_dropped() -> None:
    async def two_lives() -> list[tuple[int, int, list[str]]]:
        world = _World()
        async with aclosing(world.batches(1)) as batches:
            await batches.next()
            await asyncio.sleep(0)  # the batch of step 1 has begun
        assert world.events == ["sample 0", "sample 1"]
        assert world.finished == 1
        world.version = 1
        return await world.train(1, step=1)

    seen = asyncio.run(two_lives())
    assert seen[0] == (1, 1, ["q2", "q3"])
    assert [learner - rollouts for learner, rollouts, _ in seen] == [0, 1, 1]


def test_a_failure_while_sampling_ahead_comes_out_at_the_next_batch() -> None:
    async def fail() -> None:
        world = _World()

        async def sample(tasks: list[str], step: int) -> list[tuple[str, int]]:
            if step == 1:
                raise DataError("request 'q2' cannot be answered")
            return await world.sample(tasks, step)

        batches = RolloutBatches(world.draw, sample, staleness=1, step=0, cursor=0)
        assert await batches.next()
        await batches.settled()
        with pytest.raises(DataError, match="'q2' cannot be answered"):
            await batches.next()

    asyncio.run(fail())


def test_time_is_the_learners_only_where_it_waited() -> None:
    async def run(staleness: int, learning_s: float) -> list[tuple[float, float]]:
        world, found = _World(), []
        batches = world.batches(staleness)
        while batch := await batches.next():
            found.append((batch.waited, batch.seconds))
            await asyncio.sleep(learning_s)
            await batches.settled()
        return found

    for waited, seconds in asyncio.run(run(0, 0.0)):
        assert waited == seconds >= 0.01
    first, *others = asyncio.run(run(1, 0.5))  # fifty times as long as a batch takes
    assert first[0] == first[1]
    assert all(waited < seconds for waited, seconds in others)
