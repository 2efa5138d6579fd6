"""At the switch: verdicts become pairs, the reference scores them, shards stream to the learner."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from actors.busy import Busy
from actors.judging import Judging
from veripo_ray import codec, config
from veripo_ray.errors import DataError
from veripo_ray.journal import Journal, Tail, read
from veripo_ray.pairs import build_pairs
from veripo_ray.records import Group, JudgedGroup, Pair

# Fills in the reference log-probabilities of a shard: pairs in, the same pairs out.
Attach = Callable[[Sequence[Pair]], Awaitable[Sequence[Pair]]]


class PairStream:
    """The pairs of one grpo phase, in the order of its groups, as shards with a bounded number
    in flight. Deterministic: a resumed run makes the same pairs, and those already in the journal
    (by id) are neither scored nor written again."""

    def __init__(
        self,
        run_folder: Path,
        start: Mapping[str, int],
        judging: Judging,
        attach: Attach,
        journal: Journal,
        *,
        phase: config.Dpo,
        pairs: config.Pairs,
        checks: config.Checks,
        encode: Callable[[str], np.ndarray],
        seed: int,
    ) -> None:
        self._folder, self._start = run_folder / "journal", start
        self._judging, self._attach, self._journal = judging, attach, journal
        self._phase, self._pairs, self._checks = phase, pairs, checks
        self._encode, self._seed = encode, seed
        self._known = _places(journal.path, start.get("pairs", 0))
        self._building, self._scoring = Busy(), Busy()
        self.groups = self.masked = self.pairs = 0
        self.families: Counter[str] = Counter()

    async def shards(self) -> AsyncGenerator[list[Pair]]:
        """Shards of pairs with reference log-probabilities, the first as soon as it is scored."""
        window: asyncio.Queue[asyncio.Task[list[Pair]] | None] = asyncio.Queue(
            self._phase.shards_in_flight
        )
        producer = asyncio.create_task(self._produce(window))
        try:
            while (scored := await _next(window, producer)) is not None:
                shard = await scored
                self._record(shard)
                yield shard
        finally:
            producer.cancel()
            await asyncio.gather(producer, *_left_in(window), return_exceptions=True)

    async def again(self) -> AsyncGenerator[list[Pair]]:
        """The same pairs once more, from the journal: for the epochs after the first."""
        tail = Tail(self._journal.path, Pair, self._start.get("pairs", 0))
        while shard := tail.take():
            yield shard

    def require_pairs(self) -> None:
        """Raises DataError when the verdicts gave no pair at all."""
        if not self.pairs:
            raise DataError(
                f"the {self.groups} groups of the grpo phase gave no pair "
                f"({self.masked} of them could not be judged)",
                fix="see journal/verdicts.msgpack and the verifier's log; check pairs.families",
            )

    def take_seconds(self) -> dict[str, float]:
        """Seconds of each part of the work since the last call."""
        return {"pair building": self._building.take(), "reference": self._scoring.take()}

    async def _produce(self, window: asyncio.Queue[asyncio.Task[list[Pair]] | None]) -> None:
        shard: list[Pair] = []
        async for group, judged in self._judged_groups():
            shard += self._build(group, judged)
            while len(shard) >= self._phase.shard_pairs:
                full, shard = shard[: self._phase.shard_pairs], shard[self._phase.shard_pairs :]
                await window.put(asyncio.create_task(self._score(full)))
        if shard:
            await window.put(asyncio.create_task(self._score(shard)))
        await window.put(None)

    async def _judged_groups(self) -> AsyncIterator[tuple[Group, JudgedGroup]]:
        """Groups and verdicts were written in the same order: the journals march together."""
        tail = Tail(self._folder / "verdicts.msgpack", JudgedGroup, self._start.get("verdicts", 0))
        ready: deque[JudgedGroup] = deque()
        for group in read(self._folder / "groups.msgpack", Group, self._start.get("groups", 0)):
            while not ready:
                ready.extend(tail.take())
                if not ready:
                    await self._judging.progress()
            yield group, ready.popleft()

    def _build(self, group: Group, judged: JudgedGroup) -> list[Pair]:
        self.groups += 1
        self.masked += judged.error is not None
        with self._building.work():
            return build_pairs(
                group,
                judged,
                self._pairs,
                encode=self._encode,
                seed=self._seed,
                family_counts=self.families,
                checks=self._checks,
            )

    async def _score(self, shard: list[Pair]) -> list[Pair]:
        """The shard with reference log-probabilities; pairs of the journal have theirs already."""
        new = [pair for pair in shard if pair.id not in self._known]
        with self._scoring.work():
            scored = {pair.id: pair for pair in await self._attach(new)} if new else {}
        journaled = self._from_journal(shard) if len(new) < len(shard) else {}
        return [scored.get(pair.id) or journaled[pair.id] for pair in shard]

    def _from_journal(self, shard: list[Pair]) -> dict[str, Pair]:
        """The pairs of all messages in which one of these was written."""
        places = sorted({self._known[pair.id] for pair in shard if pair.id in self._known})
        messages = (Tail(self._journal.path, Pair, place).take() for place in places)
        return {pair.id: pair for message in messages for pair in message}

    def _record(self, shard: list[Pair]) -> None:
        self.pairs += len(shard)
        new = [pair for pair in shard if self._known.pop(pair.id, None) is None]
        if new:
            self._journal.append(new)


def _places(path: Path, start: int) -> dict[str, int]:
    """Of every pair in the journal from byte `start` on, where its message begins."""
    places: dict[str, int] = {}
    tail = Tail(path, Pair, start)
    while shard := tail.take():
        places |= dict.fromkeys((pair.id for pair in shard), start)
        start = tail.at
    return places


def _left_in(
    window: asyncio.Queue[asyncio.Task[list[Pair]] | None],
) -> list[asyncio.Task[list[Pair]]]:
    """Shards that nobody will ask for any more, cancelled."""
    left = []
    while not window.empty():
        if task := window.get_nowait():
            task.cancel()
            left.append(task)
    return left


async def _next(
    window: asyncio.Queue[asyncio.Task[list[Pair]] | None], producer: asyncio.Task[None]
) -> asyncio.Task[list[Pair]] | None:
    """The next shard of the window; a producer that failed raises here instead of hanging."""
    getting = asyncio.create_task(window.get())
    await asyncio.wait({getting, producer}, return_when=asyncio.FIRST_COMPLETED)
    if not getting.done() and producer.done() and producer.exception():
        getting.cancel()
        producer.result()
    return await getting


def as_shard(pairs: Sequence[Pair]) -> np.ndarray:
    """Pairs as msgpack in a uint8 vector, which the object store shares without a copy."""
    return codec.to_array(codec.pack_many(pairs))
