"""The feed encodes every clip once, and a bad one costs its questions and nothing else."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest

from actors.feed import Feed
from veripo_ray.errors import DataError
from veripo_ray.questions import LeftOut
from veripo_ray.records import Kind, Question
from veripo_ray.runlog import BadItem


def _question(name: str, video: str | None) -> Question:
    return Question(id=name, text="?", kind=Kind.NUMERIC, gold="1", video=video)


class _Encoder:
    def __init__(self, broken: frozenset[str] = frozenset()) -> None:
        self.calls: Counter[str | None] = Counter()
        self.broken = broken

    async def __call__(self, question: Question) -> str:
        self.calls[question.video] += 1
        await asyncio.sleep(0)
        if question.video in self.broken:
            raise DataError(f"{question.video}: no video stream", fix="replace it")
        return f"features of {question.video}"


def _feed(encoder: _Encoder, total: int = 10, share: float = 0.3) -> Feed:
    return Feed(encoder, _prompt, max_bad_share=share, total=total)


def _prompt(_: Question) -> np.ndarray:
    return np.array([1, 2])


def test_questions_about_one_clip_share_its_features_and_its_one_encoding() -> None:
    encoder = _Encoder()

    async def twice() -> Feed:
        feed = _feed(encoder)
        rows = [_question("a", "x.mp4"), _question("b", "x.mp4"), _question("c", "y.mp4")]
        first = await feed.tasks(rows)
        again = await feed.tasks(rows)
        assert [task.features for task in first] == [task.features for task in again]
        return feed

    feed = asyncio.run(twice())
    assert encoder.calls == {"x.mp4": 1, "y.mp4": 1}
    assert feed.videos == 2


def test_a_broken_clip_is_named_and_the_others_go_on() -> None:
    async def run() -> Feed:
        feed = _feed(_Encoder(frozenset({"bad.mp4"})))
        tasks = await feed.tasks([_question("a", "bad.mp4"), _question("b", "good.mp4")])
        assert [task.question.id for task in tasks] == ["b"]
        assert await feed.tasks([_question("a", "bad.mp4")]) == []
        return feed

    feed = asyncio.run(run())
    assert [item.name for item in feed.left_out.first] == ["a"]
    assert "bad.mp4: no video stream" in feed.left_out.first[0].reason
    assert feed.videos == 1


def test_more_bad_questions_than_the_share_allows_stop_the_run_and_list_them() -> None:
    async def run() -> None:
        feed = _feed(_Encoder(frozenset({"1", "2", "3"})), total=10, share=0.2)
        await feed.tasks([_question(f"q{n}", str(n)) for n in range(4)])

    with pytest.raises(
        DataError, match=r"3 of 10 questions are unusable.*max_bad_share = 0.2"
    ) as e:
        asyncio.run(run())
    assert "q3: 3: no video stream" in str(e.value)


def test_rows_that_could_not_be_read_count_as_bad_too() -> None:
    rows = [BadItem(name=f"q.jsonl:{n}", reason="no gold answer") for n in range(2)]

    async def run(left_out: LeftOut) -> Feed:
        encoder = _Encoder(frozenset({"bad.mp4"}))
        feed = Feed(encoder, _prompt, max_bad_share=0.1, total=10, left_out=left_out)
        await feed.tasks([_question("a", "bad.mp4")])
        return feed

    assert asyncio.run(run(LeftOut())).left_out.count == 1
    with pytest.raises(DataError, match=r"2 of 10.*\n  q.jsonl:0: no gold.*\n  a: bad.mp4"):
        asyncio.run(run(LeftOut.of(rows[:1])))
    with pytest.raises(DataError, match="2 of 10"):
        Feed(_Encoder(), _prompt, max_bad_share=0.1, total=10, left_out=LeftOut.of(rows))


def test_of_many_bad_items_all_are_counted_and_the_first_are_kept() -> None:
    items = (BadItem(name=str(n), reason="torn") for n in range(5000))
    left_out = LeftOut.of(items)
    assert left_out.count == 5000
    assert [item.name for item in left_out.first] == [str(n) for n in range(1000)]
    assert left_out.told(2) == "  0: torn\n  1: torn\n  ... and 4998 more"


def test_any_other_error_of_the_encoder_is_not_taken_for_bad_data() -> None:
    async def broken(_: Question) -> str:
        raise RuntimeError("out of memory")

    async def run() -> None:
        feed = Feed(broken, lambda _: np.array([1]), max_bad_share=1, total=1)
        await feed.tasks([_question("a", "x.mp4")])

    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(run())
