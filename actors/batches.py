"""Rollout batches of a grpo phase, one after the other or one ahead of the learner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from actors.feed import Task
from veripo_ray.records import Group


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """Questions and their groups, in order. cursor: how much of the phase's order is used up with
    them; seconds: of sampling; waited: those of them that the learner waited for."""

    tasks: Sequence[Task]
    groups: Sequence[Group]
    cursor: int
    seconds: float
    waited: float


@dataclass(frozen=True, slots=True)
class Drawn:
    """Questions that are to be sampled, and the cursor after them."""

    tasks: Sequence[Task]
    cursor: int


Draw = Callable[[int, int], Awaitable[Drawn | None]]  # of step and cursor; None: the phase is over
Sample = Callable[[Sequence[Task], int], Awaitable[Sequence[Group]]]


class RolloutBatches:
    """`next` gives the batch of the next step. With staleness 1 the one after it is being sampled
    from then on, under the weights that the workers have; `settled` waits until they may change.

    What is sampled ahead and never handed out has left no trace: whoever resumes begins with it.
    """

    def __init__(
        self, draw: Draw, sample: Sample, *, staleness: int, step: int, cursor: int
    ) -> None:
        self._draw, self._sample, self._staleness = draw, sample, staleness
        self._step, self._cursor = step, cursor
        self._sampling: asyncio.Task[tuple[Drawn, Sequence[Group], float] | None] | None = None
        self._waited = 0.0

    async def next(self) -> RolloutBatch | None:
        """The batch of this step; None when the phase is over."""
        started = time.monotonic()
        made = await self._started()
        self._sampling = None
        if made is None:
            return None
        drawn, groups, seconds = made
        waited = min(self._waited + time.monotonic() - started, seconds)
        self._step, self._cursor, self._waited = self._step + 1, drawn.cursor, 0.0
        if self._staleness:
            self._started()
        return RolloutBatch(drawn.tasks, groups, drawn.cursor, seconds, waited)

    async def settled(self) -> None:
        """Return when nothing is being sampled."""
        if self._sampling:
            started = time.monotonic()
            await asyncio.wait([self._sampling])
            self._waited += time.monotonic() - started

    async def aclose(self) -> None:
        """Drop what is being sampled ahead."""
        if self._sampling:
            self._sampling.cancel()
            await asyncio.gather(self._sampling, return_exceptions=True)

    def _started(self) -> asyncio.Task[tuple[Drawn, Sequence[Group], float] | None]:
        if self._sampling is None:
            self._sampling = asyncio.create_task(self._make(self._step, self._cursor))
        return self._sampling

    async def _make(self, step: int, cursor: int) -> tuple[Drawn, Sequence[Group], float] | None:
        drawn = await self._draw(step, cursor)
        if drawn is None:
            return None
        started = time.monotonic()
        groups = await self._sample(drawn.tasks, step)
        return drawn, groups, time.monotonic() - started
