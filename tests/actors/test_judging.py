"""Groups are judged while others are sampled; what could not be judged is masked, never guessed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from actors.judging import Judging
from veripo_ray.errors import ResourceError
from veripo_ray.journal import Journal, read
from veripo_ray.records import Check, Group, JudgedGroup, Kind, Question, Rollout, Verdict
from veripo_ray.verifier.verify import Item
from veripo_ray.verifier.wire import PlainVerdict

FINE = Verdict(checks=(Check(name="accuracy", passed=True, reason="right"),))


class _Client:
    """Stands in for the HTTP client: answers when and how the test says."""

    verdict = FINE

    def __init__(self, delay: Callable[[str], float] = lambda _: 0.0, down: str = "") -> None:
        self.delay, self.down, self.open, self.most_open = delay, down, 0, 0

    async def averify_plain(self, items: Sequence[Item]) -> list[PlainVerdict]:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        await asyncio.sleep(self.delay(items[0].question_id))
        self.open -= 1
        if items[0].question_id == self.down:
            raise ResourceError("the verifier gave no answer", fix="start it")
        return [self.verdict.model_dump() for _ in items]


def _group(name: str, rollouts: int = 2) -> Group:
    question = Question(id=name, text="?", kind=Kind.NUMERIC, gold="1")
    rollout = Rollout(
        text="1", token_ids=[1], logprobs=[-1.0], finish_reason="stop", policy_version=0
    )
    return Group(id=f"1.{name}", question=question, prompt_ids=[1], rollouts=(rollout,) * rollouts)


def _journal(folder: Path) -> Journal:
    return Journal(folder / "verdicts.msgpack", JudgedGroup)


def _judged(folder: Path) -> list[JudgedGroup]:
    return list(read(folder / "verdicts.msgpack", JudgedGroup))


def test_verdicts_are_written_in_the_order_of_the_groups_whoever_answers_first(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        client = _Client(delay=lambda name: 0.05 if name == "slow" else 0.0)
        judging = Judging(client, _journal(tmp_path))
        await judging.submit([_group("slow")])
        await judging.submit([_group("a"), _group("b", rollouts=3)])
        await judging.drain()
        assert judging.judged == judging.submitted == 3
        await judging.close()

    asyncio.run(run())
    assert [group.group_id for group in _judged(tmp_path)] == ["1.slow", "1.a", "1.b"]
    assert [len(group.verdicts) for group in _judged(tmp_path)] == [2, 2, 3]


def test_a_verifier_that_fails_masks_the_group_and_the_run_goes_on(tmp_path: Path) -> None:
    async def run() -> int:
        judging = Judging(_Client(down="b"), _journal(tmp_path))
        for name in "abc":
            await judging.submit([_group(name)])
        await judging.drain()
        await judging.close()
        return judging.errors

    assert asyncio.run(run()) == 1
    first, second, third = _judged(tmp_path)
    assert second.error is not None
    assert "gave no answer" in second.error
    assert second.verdicts == ()
    assert first.error is None
    assert third.error is None


def test_a_check_that_could_not_decide_masks_its_group(tmp_path: Path) -> None:
    undecided = Check(name="consistency", passed=None, reason="", error="the judge is down")
    client = _Client()
    client.verdict = Verdict(checks=(*FINE.checks, undecided))

    async def run() -> int:
        judging = Judging(client, _journal(tmp_path))
        await judging.submit([_group("a"), _group("b")])
        await judging.drain()
        await judging.close()
        return judging.errors

    assert asyncio.run(run()) == 2
    assert [group.error for group in _judged(tmp_path)] == ["consistency: the judge is down"] * 2
    assert _judged(tmp_path)[0].verdicts == (client.verdict,) * 2


def test_submitting_waits_while_too_many_batches_are_unanswered(tmp_path: Path) -> None:
    async def run() -> _Client:
        client = _Client(delay=lambda _: 0.01)
        judging = Judging(client, _journal(tmp_path), in_flight=2)
        for number in range(10):
            await judging.submit([_group(str(number))])
        await judging.drain()
        await judging.close()
        return client

    client = asyncio.run(run())
    assert client.most_open <= 4  # two queued, one with the writer, one about to be queued
    assert len(_judged(tmp_path)) == 10


def test_progress_tells_of_a_verdict_and_never_waits_for_one_that_cannot_come(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        judging = Judging(_Client(delay=lambda _: 0.01), _journal(tmp_path))
        with pytest.raises(RuntimeError, match="never submitted"):
            await judging.progress()
        await judging.submit([_group("a")])
        await judging.progress()
        assert judging.judged == 1
        assert judging.busy.take() > 0
        assert judging.busy.take() == 0
        await judging.close()

    asyncio.run(run())


def test_a_journal_that_cannot_be_written_raises_instead_of_hanging(tmp_path: Path) -> None:
    class _Full(Journal):
        def append_plain(self, rows: object) -> None:
            raise OSError("no space left on device")

    async def run() -> None:
        judging = Judging(_Client(), _Full(tmp_path / "verdicts.msgpack", JudgedGroup))
        await judging.submit([_group("a")])
        with pytest.raises(OSError, match="no space left"):
            await asyncio.wait_for(judging.drain(), 5)
        await judging.close()

    asyncio.run(run())
