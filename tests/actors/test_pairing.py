"""Pairs stream: the first shard is there before the last group is judged, none comes twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from actors.judging import Judging
from actors.pairing import PairStream, as_shard
from veripo_ray import codec, config
from veripo_ray.errors import DataError
from veripo_ray.journal import RunJournals, read_pairs
from veripo_ray.records import Group, Kind, Pair, Question, Rollout
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.verify import Item, verify
from veripo_ray.verifier.wire import PlainVerdict

CHECKS = config.Checks(min_think_tokens=1)
RIGHT = "<think> f1 red 1 f2 blue 1 so {n} </think> <answer> {n} </answer>"
WRONG = "<think> f1 blue 0 so 0 </think> <answer> 0 </answer>"


class _Client:
    """The real verifier without HTTP; `gate` holds back the groups after the first few."""

    def __init__(self, free: int, gate: asyncio.Event) -> None:
        self.free, self.gate = free, gate

    async def averify_plain(self, items: Sequence[Item]) -> list[PlainVerdict]:
        if int(items[0].question_id) >= self.free:
            await self.gate.wait()
        return [verdict.model_dump() for verdict in verify(items, Rules(), CHECKS)]


class _Reference:
    """Counts whom it scores and how many shards are with it at once."""

    def __init__(self) -> None:
        self.scored: list[str] = []
        self.open = self.most_open = 0

    async def __call__(self, pairs: Sequence[Pair]) -> list[Pair]:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        await asyncio.sleep(0.001)
        self.open -= 1
        self.scored += [pair.id for pair in pairs]
        shard = codec.unpack_many(memoryview(as_shard(pairs)), Pair)
        sides = ("chosen", "rejected")
        scores = {"reference_logprob": -1.0}
        return [
            pair.model_copy(
                update={side: getattr(pair, side).model_copy(update=scores) for side in sides}
            )
            for pair in shard
        ]


def _group(number: int) -> Group:
    question = Question(id=str(number), text="count red ?", kind=Kind.NUMERIC, gold=str(number + 1))
    texts = (RIGHT.format(n=number + 1), WRONG)
    rollouts = tuple(
        Rollout(
            text=text,
            token_ids=_encode(text),
            logprobs=np.zeros(len(_encode(text))),
            finish_reason="stop",
            policy_version=0,
        )
        for text in texts
    )
    return Group(id=f"1.{number}", question=question, prompt_ids=[1], rollouts=rollouts)


def _encode(text: str) -> np.ndarray:
    return np.array([sum(map(ord, word)) % 997 for word in text.split()], np.int32)


class _Scene:
    """A grpo phase of `groups` groups, at its end, about to switch."""

    def __init__(self, folder: Path, groups: int, *, free: int | None = None) -> None:
        self.folder, self.groups, self.reference = folder, groups, _Reference()
        self.free = groups if free is None else free

    async def open(self) -> None:
        self.gate = asyncio.Event()
        self.journals = RunJournals(self.folder)
        self.journals.truncate({"groups": 0, "verdicts": 0})
        self.judging = Judging(_Client(self.free, self.gate), self.journals.verdicts, in_flight=99)
        for number in range(self.groups):
            self.journals.groups.append([_group(number)])
            await self.judging.submit([_group(number)])

    def stream(self, **phase: int) -> PairStream:
        return PairStream(
            self.folder,
            {},
            self.judging,
            self.reference,
            self.journals.pairs,
            phase=config.Dpo(**{"shard_pairs": 2, "shards_in_flight": 2, **phase}),
            pairs=config.Pairs(per_question=1),
            checks=CHECKS,
            encode=_encode,
            seed=0,
        )


def test_the_first_shard_comes_before_the_last_group_is_judged(tmp_path: Path) -> None:
    async def run() -> tuple[int, int]:
        scene = _Scene(tmp_path, groups=10, free=4)
        await scene.open()
        shards = scene.stream().shards()
        first = await asyncio.wait_for(anext(shards), 10)
        judged_then = scene.judging.judged
        scene.gate.set()
        rest = [pair async for shard in shards for pair in shard]
        await scene.judging.close()
        assert all(pair.chosen.reference_logprob == -1.0 for pair in [*first, *rest])
        return judged_then, len(first) + len(rest)

    judged_then, pairs = asyncio.run(run())
    assert judged_then == 4
    assert pairs == 10
    assert len({pair.id for pair in read_pairs(tmp_path)}) == 10


def test_the_number_of_shards_in_flight_is_bounded(tmp_path: Path) -> None:
    async def run() -> int:
        scene = _Scene(tmp_path, groups=40)
        await scene.open()
        async for _ in scene.stream(shard_pairs=1).shards():
            await asyncio.sleep(0.002)
        await scene.judging.close()
        return scene.reference.most_open

    assert asyncio.run(run()) <= 4  # two in the window, one handed over, one waiting for a place


def test_a_resumed_phase_neither_scores_nor_writes_again_what_the_journal_has(
    tmp_path: Path,
) -> None:
    async def go(stop_after: int | None) -> tuple[list[str], list[str]]:
        scene = _Scene(tmp_path, groups=12)
        await scene.open()
        seen: list[str] = []
        shards = scene.stream().shards()
        async for shard in shards:
            seen += [pair.id for pair in shard]
            if stop_after and len(seen) >= stop_after:
                break
        await shards.aclose()
        await scene.judging.close()
        return seen, scene.reference.scored

    first, _ = asyncio.run(go(stop_after=4))
    again, scored = asyncio.run(go(stop_after=None))
    assert again[:4] == first
    assert not set(first) & set(scored)
    assert [pair.id for pair in read_pairs(tmp_path)] == again


def test_later_epochs_read_the_same_pairs_from_the_journal(tmp_path: Path) -> None:
    async def run() -> None:
        scene = _Scene(tmp_path, groups=5)
        await scene.open()
        stream = scene.stream()
        first = [pair async for shard in stream.shards() for pair in shard]
        second = [pair async for shard in stream.again() for pair in shard]
        assert second == first
        stream.require_pairs()
        assert set(stream.take_seconds()) == {"pair building", "reference"}
        await scene.judging.close()

    asyncio.run(run())


def test_a_phase_without_a_single_pair_says_where_to_look(tmp_path: Path) -> None:
    async def run() -> None:
        scene = _Scene(tmp_path, groups=0)
        await scene.open()
        stream = scene.stream()
        assert [shard async for shard in stream.shards()] == []
        await scene.judging.close()
        stream.require_pairs()

    with pytest.raises(DataError, match="gave no pair"):
        asyncio.run(run())


def test_a_reference_that_fails_raises_instead_of_hanging(tmp_path: Path) -> None:
    async def broken(_: Sequence[Pair]) -> list[Pair]:
        raise RuntimeError("reference died")

    async def run() -> None:
        scene = _Scene(tmp_path, groups=6)
        await scene.open()
        scene.reference = broken  # type: ignore[assignment]
        try:
            async with asyncio.timeout(10):
                async for _ in scene.stream().shards():
                    pass
        finally:
            await scene.judging.close()

    with pytest.raises(RuntimeError, match="reference died"):
        asyncio.run(run())
