"""Questions dealt to rollout workers, and their groups collected as they finish.

A run of one worker gives it them all. Of several, each starts with an equal share, but no more than
fills its batch; what is left goes to the worker that has room and asks, several at a time while
there is much left and one by one in the end, so that a slow worker keeps nobody waiting. What a
lost worker had in hand goes to the others, and to those who join: every question comes out as one
group, whoever answers it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import ray
from ray.exceptions import RayError

from actors.calls import late, own_error, result_of
from actors.feed import Task
from actors.workers import Workers, is_lost
from veripo_ray.errors import ResourceError, VeripoError
from veripo_ray.records import Group
from veripo_ray.sampler import Sampled, SampleRequest

FETCHED_AT_ONCE = 16
# Handing a result to Ray costs a worker about a millisecond, and the coordinator half of one. So
# what a worker finishes within this time it hands over together; of many workers it is more, so
# that the coordinator gets no more than BUNDLES_A_SECOND of all. Nobody waits for a single group.
HOLD_S = 0.1
BUNDLES_A_SECOND = 100
LOOK_S = 1.0  # after which a worker that joins in the middle of a sampling gets its share of it
Dealt = tuple[str, Any, tuple[Any]]  # id, prompt ids, and a reference that Ray leaves unresolved
Event = tuple[str, Sampled | BaseException | None]  # of a hand: a group, or how its stream ended


class Dealer:
    """Lives in the actor that leads, whose method `deal` must be this one's: workers call it."""

    def __init__(self, max_num_seqs: int, limit_s: float) -> None:
        """max_num_seqs: rollouts in a worker's batch; limit_s: longest wait for a group."""
        self._places, self._limit_s = max_num_seqs, limit_s
        self._samplings: dict[str, _Sampling] = {}

    def deal(self, hand: str) -> list[Dealt]:
        """The next questions for a worker's hand; none when there are none left for it."""
        sampling = self._samplings.get(hand.rpartition("#")[0])
        return sampling.deal(hand) if sampling else []

    async def groups(
        self, tasks: Sequence[Task], name: str, workers: Workers, settings: Mapping[str, Any]
    ) -> AsyncGenerator[Group]:
        """The group of every task, as soon as it is finished, with ids that begin with `name`.
        Whoever leaves early ends the dealing: workers finish what they were given and no more."""
        questions = {task.question.id: task.question for task in tasks}
        room = -(-self._places // settings["n"]) if workers.several else len(tasks)
        await workers.enough()
        sampling = _Sampling(name, tasks, workers, settings, room, self._limit_s)
        self._samplings[name] = sampling
        try:
            for _ in tasks:
                sampled = await sampling.next()
                yield _group(name, questions[sampled.id], sampled)
        finally:
            del self._samplings[name]
            sampling.close()

    async def group(self, task: Task, name: str, worker: Any, settings: Mapping[str, Any]) -> Group:
        """The group of one task by this very worker."""
        stream = _sampled(worker, [dealt(task)], None, "", settings, self._limit_s)
        (sampled,) = [each async for each in stream]
        return _group(name, task.question, sampled)


def _group(name: str, question: Any, sampled: Sampled) -> Group:
    return Group(
        id=f"{name}.{sampled.id}",
        question=question,
        prompt_ids=sampled.prompt_ids,
        rollouts=sampled.rollouts,
    )


class _Sampling:
    """Who has which questions, by hand: what one worker was given in one stream, and not answered
    yet. Its groups come as events, so that waiting costs the same for however many workers."""

    def __init__(
        self,
        name: str,
        tasks: Sequence[Task],
        workers: Workers,
        settings: Mapping[str, Any],
        room: int,
        limit_s: float,
    ) -> None:
        self._name, self._workers, self._settings = name, workers, settings
        self._room, self._limit_s = room, limit_s
        self._left = deque(dealt(task) for task in tasks)
        self._held: dict[str, dict[str, Dealt]] = {}
        self._dealt: dict[str, tuple[int, float]] = {}  # how many a hand got last, and when
        self._streams: dict[str, tuple[int, Any, asyncio.Task[None]]] = {}
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._serial, self._joins = itertools.count(), -1

    def deal(self, hand: str) -> list[Dealt]:
        """More of those nobody has: a quarter of a worker's part of them, at least one; to a worker
        that comes back at once twice what it got before, but no more than its part. None when the
        hand was given up."""
        held = self._held.get(hand)
        if held is None:
            return []
        part = len(self._left) / len(self._streams)
        many, now = part / 4, time.monotonic()
        before, at = self._dealt.get(hand, (0, -math.inf))
        if now - at < HOLD_S:
            many = min(part, max(many, 2 * before))
        dealt = [self._left.popleft() for _ in range(min(math.ceil(many), self._room))]
        self._dealt[hand] = len(dealt), now
        held.update((question[0], question) for question in dealt)
        return dealt

    async def next(self) -> Sampled:
        """The next group, of a question that has had none. What ends a worker's stream raises,
        unless it is the loss of the worker."""
        while True:
            if self._joins != self._workers.joins:
                self._set_to_work()
            hand, what = await self._event()
            if not isinstance(what, Sampled):
                self._end(hand, what)
            elif self._held[hand].pop(what.id, None):
                return what

    def close(self) -> None:
        for _, _, reading in self._streams.values():
            reading.cancel()

    def _set_to_work(self) -> None:
        """Deal to the workers that have nothing to do, as far as there is something left."""
        self._joins = self._workers.joins
        busy = {number for number, _, _ in self._streams.values()}
        idle = [entry for entry in self._workers.there.items() if entry[0] not in busy]
        if not idle:
            return
        shares, left = deal_out(list(self._left), len(idle), self._room)
        self._left = deque(left)
        for (number, worker), share in zip(idle, shares, strict=True):
            if share:
                self._begin(number, worker, share)

    def _begin(self, number: int, worker: Any, share: Sequence[Dealt]) -> None:
        hand = f"{self._name}#{next(self._serial)}"
        self._held[hand] = {question[0]: question for question in share}
        reading = asyncio.create_task(self._read(hand, worker, share))
        reading.add_done_callback(lambda task: self._over(hand, task))
        self._streams[hand] = number, worker, reading

    async def _read(self, hand: str, worker: Any, share: Sequence[Dealt]) -> None:
        me = ray.get_runtime_context().current_actor if self._left else None
        hold_s = max(HOLD_S, len(self._workers.there) / BUNDLES_A_SECOND)
        settings = {"hold_s": hold_s, **self._settings}
        stream = _sampled(worker, share, me, hand, settings, self._limit_s)
        async for sampled in stream:
            self._events.put_nowait((hand, sampled))

    def _over(self, hand: str, reading: asyncio.Task[None]) -> None:
        if not reading.cancelled():
            self._events.put_nowait((hand, reading.exception()))

    def _end(self, hand: str, error: BaseException | None) -> None:
        """A stream is over. What a lost worker had not answered is dealt first."""
        number, worker, _ = self._streams.pop(hand)
        unanswered = self._held.pop(hand).values()
        assert error or not unanswered, f"{hand} ended without an answer to {[*unanswered]}"
        if isinstance(error, VeripoError) and is_lost(error):
            self._left.extendleft(reversed(unanswered))
            self._workers.lost(number, worker, error)
        elif error:
            raise error
        self._set_to_work()

    async def _event(self) -> Event:
        """What comes next. The wait ends, with an error, after the limit for a group, or for the
        first worker where none is left."""
        waiting_since = time.monotonic()
        while self._events.empty():
            if not self._streams:
                await self._workers.enough()
                self._set_to_work()
            try:
                async with asyncio.timeout(LOOK_S):
                    return await self._events.get()
            except TimeoutError:
                if time.monotonic() - waiting_since > self._limit_s:
                    raise self._late() from None
            if self._joins != self._workers.joins:
                self._set_to_work()
        return self._events.get_nowait()

    def _late(self) -> ResourceError:
        silent = sorted(number for number, _, _ in self._streams.values())
        names = ", ".join(map(str, silent))
        return late(f"sampling a group (rollout workers {names})", self._limit_s)


async def _sampled(
    worker: Any,
    share: Sequence[Dealt],
    dealer: Any,
    hand: str,
    settings: Mapping[str, Any],
    limit_s: float,
) -> AsyncIterator[Sampled]:
    """One worker's groups as they finish."""
    stream = worker.sample.options(num_returns="streaming").remote(share, dealer, hand, **settings)
    try:
        async for reference in stream:
            for sampled in await result_of(reference, limit_s, "sampling a group"):
                yield sampled
    except RayError as error:
        raise own_error(error) from None


def dealt(task: Task) -> Dealt:
    return task.question.id, task.prompt_ids, (task.features,)


def deal_out(
    questions: Sequence[Dealt], workers: int, room: int
) -> tuple[list[list[Dealt]], list[Dealt]]:
    """Each worker's next share, of at most `room` questions, and what is left for who asks."""
    at_once = min(len(questions), workers * room)
    shares = [list(questions[n:at_once:workers]) for n in range(workers)]
    return shares, list(questions[at_once:])


def requests(share: Sequence[Dealt], dealer: Any, hand: str) -> Iterator[SampleRequest]:
    """A worker's questions, in its own process: its share, then what the dealer gives it.

    dealer: the actor to ask, None where the share is all there is. It is asked ahead, so that the
    engine does not wait for the answer. Features of a share are fetched a few questions at once,
    side by side where they lie on other nodes.
    """
    ahead = dealer and dealer.deal.remote(hand)
    for start in range(0, len(share), FETCHED_AT_ONCE):
        yield from _requests(share[start : start + FETCHED_AT_ONCE])
    while ahead and (questions := ray.get(ahead)):
        ahead = dealer.deal.remote(hand)
        yield from _requests(questions)


def _requests(questions: Sequence[Dealt]) -> Iterator[SampleRequest]:
    features = ray.get([reference for _, _, (reference,) in questions])
    for (id_, prompt_ids, _), found in zip(questions, features, strict=True):
        yield SampleRequest(id_, prompt_ids, found)


def handed_over(steps: Generator[list[Sampled]], hold_s: float) -> Generator[list[Sampled]]:
    """What an engine's steps finish, mostly nothing, in bundles in which the first has waited for
    `hold_s` seconds. The last one waits for nothing."""
    bundle: list[Sampled] = []
    since = 0.0
    with closing(steps):
        for finished in steps:
            if finished and not bundle:
                since = time.monotonic()
            bundle += finished
            if bundle and time.monotonic() - since >= hold_s:
                yield bundle
                bundle = []
        if bundle:
            yield bundle
