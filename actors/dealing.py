"""Questions dealt to rollout workers, and their groups collected as they finish.

A single worker gets them all. Of several, each starts with an equal share, but no more than fills
its batch; what is left goes one by one to the worker that has room and asks, so that a slow worker
keeps nobody waiting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import ray

from actors.calls import late, result_of
from actors.feed import Task
from veripo_ray.records import Group
from veripo_ray.sampler import SampleRequest

FETCHED_AT_ONCE = 16
Dealt = tuple[str, Any, tuple[Any]]  # id, prompt ids, and a reference that Ray leaves unresolved


class Dealer:
    """Lives in the actor that leads, whose method `deal` must be this one's: workers call it."""

    def __init__(self, max_num_seqs: int, limit_s: float) -> None:
        """max_num_seqs: rollouts in a worker's batch; limit_s: longest wait for a group."""
        self._places, self._limit_s = max_num_seqs, limit_s
        self._left: dict[str, deque[Dealt]] = {}

    def deal(self, name: str) -> Dealt | None:
        """The next question of the sampling of this name; None when there is none left."""
        left = self._left.get(name)
        return left.popleft() if left else None

    async def groups(
        self, tasks: Sequence[Task], name: str, workers: Sequence[Any], sampling: Mapping[str, Any]
    ) -> AsyncIterator[Group]:
        """The group of every task, as soon as it is finished, with ids that begin with `name`.
        Whoever leaves early ends the dealing: workers finish what they were given and no more."""
        questions = {task.question.id: task.question for task in tasks}
        room = -(-self._places // sampling["n"]) if len(workers) > 1 else len(tasks)
        shares, left = deal_out(tasks, len(workers), room)
        self._left[name] = deque(left)
        results: asyncio.Queue[Any] = asyncio.Queue()
        readers = [
            asyncio.create_task(self._read(worker, share, name, sampling, results))
            for worker, share in zip(workers, shares, strict=True)
            if share
        ]
        try:
            for _ in tasks:
                sampled = await self._first(results, readers)
                yield Group(
                    id=f"{name}.{sampled.id}",
                    question=questions[sampled.id],
                    prompt_ids=sampled.prompt_ids,
                    rollouts=sampled.rollouts,
                )
        finally:
            del self._left[name]
            for reader in readers:
                reader.cancel()

    async def _read(
        self,
        worker: Any,
        share: Sequence[Dealt],
        name: str,
        sampling: Mapping[str, Any],
        results: asyncio.Queue[Any],
    ) -> None:
        """Bring one worker's groups to the queue as they finish."""
        me = ray.get_runtime_context().current_actor if self._left[name] else None
        stream = worker.sample.options(num_returns="streaming").remote(share, me, name, **sampling)
        async for reference in stream:
            for group in await result_of(reference, self._limit_s, "sampling a group"):
                await results.put(group)

    async def _first(
        self, results: asyncio.Queue[Any], readers: Sequence[asyncio.Task[None]]
    ) -> Any:
        """The next finished group; a worker that failed raises instead of leaving us waiting."""
        getting = asyncio.create_task(results.get())
        working: set[asyncio.Task[Any]] = {getting, *readers}
        while not getting.done():
            done, working = await asyncio.wait(
                working, timeout=self._limit_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                raise late("sampling a group", self._limit_s)
            for task in done:
                task.result()
        return getting.result()


def deal_out(
    tasks: Sequence[Task], workers: int, room: int
) -> tuple[list[list[Dealt]], list[Dealt]]:
    """Each worker's first share, of at most `room` questions, and what is left for who asks."""
    questions = [(task.question.id, task.prompt_ids, (task.features,)) for task in tasks]
    at_once = min(len(tasks), workers * room)
    return [questions[n:at_once:workers] for n in range(workers)], questions[at_once:]


def requests(share: Sequence[Dealt], dealer: Any, name: str) -> Iterator[SampleRequest]:
    """A worker's questions, in its own process: its share, then what the dealer gives it.

    dealer: the actor to ask, None where the share is all there is. It is asked one question ahead,
    so that the engine does not wait for the answer. Features of a share are fetched a few questions
    at once, side by side where they lie on other nodes.
    """
    ahead = dealer and dealer.deal.remote(name)
    for start in range(0, len(share), FETCHED_AT_ONCE):
        yield from _requests(share[start : start + FETCHED_AT_ONCE])
    while ahead and (question := ray.get(ahead)) is not None:
        ahead = dealer.deal.remote(name)
        yield from _requests([question])


def _requests(questions: Sequence[Dealt]) -> Iterator[SampleRequest]:
    features = ray.get([reference for _, _, (reference,) in questions])
    for (id_, prompt_ids, _), found in zip(questions, features, strict=True):
        yield SampleRequest(id_, prompt_ids, found)
