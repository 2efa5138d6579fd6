"""Whose turn it is on GPUs that rollout workers, learner ranks and the reference share.

One of the three works, the others wait: a worker sleeps, the reference rests in the node's memory
by itself. Waking goes in the order that leaves room: a worker's weights, then the weight update,
which the learner must still hold its own for, then the cache of keys and values. Where everyone has
GPUs of his own it is always everyone's turn, and nothing here does anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from actors.calls import results_of
from veripo_ray import config
from veripo_ray.sampler import CACHE, WEIGHTS


class Turns:
    """Puts the workers to sleep and wakes them; whoever uses a GPU asks here first."""

    def __init__(self, run: config.Run, workers: Callable[[], Mapping[str, Any]]) -> None:
        """workers: those that are there, by name."""
        self.shared = run.placement.layout == "colocated"
        self._level, self._limit_s = run.placement.sleep_level, run.call_timeout_s
        self._workers = workers
        self._asleep: set[str] = set()
        self._one = asyncio.Lock()

    async def begin(self) -> None:
        """The workers have started; the others are about to."""
        async with self._one:
            await self._sleep(1)

    async def sampling(self) -> None:
        """The workers' turn, until somebody else's begins."""
        async with self._one:
            await self._wake(WEIGHTS, CACHE)

    @asynccontextmanager
    async def learning(self, *, updates: bool = False) -> AsyncIterator[None]:
        """The learner's or the reference's turn. updates: every weight is sent after it, so workers
        need not keep theirs (`placement.sleep_level`)."""
        if not self.shared:
            yield
            return
        async with self._one:
            await self._sleep(self._level if updates else 1)
            yield

    @asynccontextmanager
    async def syncing(self) -> AsyncIterator[None]:
        """The weight update: workers have room for their weights, and for nothing else yet."""
        if not self.shared:
            yield
            return
        async with self._one:
            await self._sleep(1)
            await self._wake(WEIGHTS)
            yield
            await self._wake(CACHE)

    async def _sleep(self, level: int) -> None:
        if not self._asleep:
            await self._tell("falling asleep", lambda worker: worker.sleep.remote(level))
            self._asleep = {WEIGHTS, CACHE}

    async def _wake(self, *tags: str) -> None:
        if wanted := [tag for tag in tags if tag in self._asleep]:
            await self._tell("waking up", lambda worker: worker.wake.remote(wanted))
            self._asleep -= set(wanted)

    async def _tell(self, what: str, call: Callable[[Any], Any]) -> None:
        workers = self._workers()
        calls = [call(worker) for worker in workers.values()]
        await results_of(calls, self._limit_s, f"{what} of {', '.join(workers)}")
