"""Groups are judged over HTTP while the learner goes on; verdicts land in the journal in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from actors.busy import Busy
from veripo_ray.errors import VeripoError
from veripo_ray.journal import Journal
from veripo_ray.records import Group, JudgedGroup, Verdict
from veripo_ray.verifier import wire
from veripo_ray.verifier.client import VerifierClient
from veripo_ray.verifier.verify import Item

REQUEST_GROUPS = (
    32  # a group costs no less in larger requests, and more of them keep others waiting
)
REQUESTS_AT_ONCE = 4  # of all batches
PlainJudged = dict[str, Any]  # a JudgedGroup's `model_dump`: nobody here asks what a verdict says


class Judging:
    """A bounded queue of groups on their way through the verifier.

    `submit` waits while `in_flight` batches are unanswered (backpressure). A request the verifier
    could not answer is recorded as an error, which masks its groups: never as a verdict.
    """

    def __init__(self, client: VerifierClient, journal: Journal, *, in_flight: int = 8) -> None:
        self._client, self._journal = client, journal
        self._queue: asyncio.Queue[asyncio.Task[list[PlainJudged]]] = asyncio.Queue(in_flight)
        self._writer = asyncio.create_task(self._write_in_order())
        self._asking = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self.busy = Busy()
        self.submitted = self.judged = self.errors = 0
        self._progress = asyncio.Event()

    async def submit(self, groups: Sequence[Group]) -> None:
        self.submitted += len(groups)
        await self._queue.put(asyncio.create_task(self._judge(groups)))

    async def drain(self) -> None:
        """Return when every verdict so far is in the journal."""
        done = asyncio.create_task(self._queue.join())
        await asyncio.wait({done, self._writer}, return_when=asyncio.FIRST_COMPLETED)
        if self._writer.done():
            done.cancel()
            self._writer.result()

    async def progress(self) -> None:
        """Return when more verdicts have been written than at the call."""
        if self.judged == self.submitted:
            raise RuntimeError("waited for a verdict of a group that was never submitted")
        self._progress.clear()
        waiting = asyncio.create_task(self._progress.wait())
        await asyncio.wait({waiting, self._writer}, return_when=asyncio.FIRST_COMPLETED)
        if self._writer.done():
            waiting.cancel()
            self._writer.result()

    async def close(self) -> None:
        left = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
        for task in (self._writer, *left):
            task.cancel()
        await asyncio.gather(self._writer, *left, return_exceptions=True)

    async def _write_in_order(self) -> None:
        while True:
            task = await self._queue.get()
            judged = await task
            self._journal.append_plain(judged)
            self.judged += len(judged)
            self.errors += sum(group["error"] is not None for group in judged)
            self._queue.task_done()
            self._progress.set()

    async def _judge(self, groups: Sequence[Group]) -> list[PlainJudged]:
        with self.busy.work():
            starts = range(0, len(groups), REQUEST_GROUPS)
            parts = [groups[start : start + REQUEST_GROUPS] for start in starts]
            judged = await asyncio.gather(*map(self._request, parts))
            return [group for part in judged for group in part]

    async def _request(self, groups: Sequence[Group]) -> list[PlainJudged]:
        async with self._asking:
            try:
                verdicts = iter(await self._client.averify_plain(_items(groups)))
            except VeripoError as error:
                return [_plain(group, [], str(error)) for group in groups]
        return [_judged_plain(group, [next(verdicts) for _ in group.rollouts]) for group in groups]


async def judge_groups(client: VerifierClient, groups: Sequence[Group]) -> list[JudgedGroup]:
    """One request for the rollouts of several groups, cut back into groups."""
    verdicts = iter(await client.averify(_items(groups)))
    return [_judged(group, [next(verdicts) for _ in group.rollouts]) for group in groups]


def _items(groups: Sequence[Group]) -> list[Item]:
    return [Item.of(group.question, rollout.text) for group in groups for rollout in group.rollouts]


def _judged(group: Group, verdicts: list[Verdict]) -> JudgedGroup:
    """A verdict that could not be reached masks its whole group."""
    error = next((verdict.error for verdict in verdicts if verdict.error), None)
    return JudgedGroup(group_id=group.id, verdicts=tuple(verdicts), error=error)


def _judged_plain(group: Group, verdicts: list[wire.PlainVerdict]) -> PlainJudged:
    return _plain(group, verdicts, next(filter(None, map(wire.first_error, verdicts)), None))


def _plain(group: Group, verdicts: list[wire.PlainVerdict], error: str | None) -> PlainJudged:
    return {"group_id": group.id, "verdicts": verdicts, "error": error}
