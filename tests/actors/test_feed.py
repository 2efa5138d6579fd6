"""The feed encodes every clip once, and a bad one costs its questions and nothing else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

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

    async def __call__(self, question: Question) -> tuple[int, str]:
        self.calls[question.video] += 1
        await asyncio.sleep(0)
        if question.video in self.broken:
            raise DataError(f"{question.video}: no video stream", fix="replace it")
        return 100, f"features of {question.video}"


def _feed(encoder: _Encoder, total: int = 10, share: float = 0.3, live_bytes: float = 1e9) -> Feed:
    return Feed(encoder, _prompts, max_bad_share=share, total=total, live_bytes=live_bytes)


def _prompts(questions: Sequence[Question]) -> list[np.ndarray]:
    return [np.array([1, 2]) for _ in questions]


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
        feed = Feed(
            encoder, _prompts, max_bad_share=0.1, total=10, live_bytes=1e9, left_out=left_out
        )
        await feed.tasks([_question("a", "bad.mp4")])
        return feed

    assert asyncio.run(run(LeftOut())).left_out.count == 1
    with pytest.raises(DataError, match=r"2 of 10.*\n  q.jsonl:0: no gold.*\n  a: bad.mp4"):
        asyncio.run(run(LeftOut.of(rows[:1])))
    with pytest.raises(DataError, match="2 of 10"):
        Feed(
            _Encoder(),
            _prompts,
            max_bad_share=0.1,
            total=10,
            live_bytes=1e9,
            left_out=LeftOut.of(rows),
        )


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
        feed = Feed(broken, lambda _: np.array([1]), max_bad_share=1, total=1, live_bytes=1)
        await feed.tasks([_question("a", "x.mp4")])

    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(run())


def _clips(*numbers: int) -> list[Question]:
    return [_question(f"q{n}", f"{n}.mp4") for n in numbers]


def test_no_more_features_are_kept_than_there_is_room_for_and_the_longest_unused_go_first() -> None:
    encoder = _Encoder()

    async def run() -> None:
        feed = _feed(encoder, live_bytes=300)
        for number in range(6):
            await feed.tasks(_clips(number))
            await feed.tasks(_clips(0))  # in use all the time
            assert feed.live <= 3
        assert feed.videos == 6
        await feed.tasks(_clips(5, 0))
        assert max(encoder.calls.values()) == 1
        (task,) = await feed.tasks(_clips(1))  # let go long ago
        assert task.features == "features of 1.mp4"
        assert encoder.calls["1.mp4"] == 2
        assert feed.videos == 6

    asyncio.run(run())


def test_references_are_bounded_in_number_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.feed.LIVE_REFERENCES", 4)

    async def run() -> None:
        feed = _feed(_Encoder())
        for number in range(20):
            await feed.tasks(_clips(number))
        assert feed.live == 4

    asyncio.run(run())


def test_what_was_fetched_ahead_is_there_when_it_is_asked_for_even_without_room() -> None:
    encoder = _Encoder()

    async def run() -> None:
        feed = _feed(encoder, live_bytes=100)
        for first in range(0, 12, 4):
            await feed.tasks(_clips(*range(first, first + 4)))
            feed.prefetch(_clips(*range(first + 4, first + 8)))
            for _ in range(5):
                await asyncio.sleep(0)
            assert feed.live == 4
        feed.prefetch([])
        assert feed.live == 1

    asyncio.run(run())
    assert set(encoder.calls.values()) == {1}


def test_all_who_ask_for_a_clip_at_once_wait_for_one_encoding() -> None:
    encoder = _Encoder()

    async def run() -> None:
        feed = _feed(encoder, live_bytes=0)
        asked = _clips(7, 7, 7)
        found = await asyncio.gather(*(feed.features(question) for question in asked))
        assert found == ["features of 7.mp4"] * 3

    asyncio.run(run())
    assert encoder.calls == {"7.mp4": 1}


def test_a_clip_that_has_gone_since_is_an_error_with_its_name() -> None:
    encoder = _Encoder()

    async def run() -> None:
        feed = _feed(encoder, live_bytes=0)
        await feed.tasks(_clips(1))
        feed.prefetch([])
        encoder.broken = frozenset({"1.mp4"})
        await feed.features(_clips(1)[0])

    with pytest.raises(DataError, match=r"1\.mp4: no video stream"):
        asyncio.run(run())
