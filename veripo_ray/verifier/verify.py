"""The whole verifier, without a server: items in, a verdict each out."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, get_args

from pydantic import Field

from veripo_ray import config
from veripo_ray.records import Check, CheckName, Kind, Question, Record, Verdict
from veripo_ray.scoring import answers
from veripo_ray.scoring.answers import Parts
from veripo_ray.verifier.checks import (
    CountTokens,
    check_accuracy,
    check_format,
    check_length,
    check_reflection,
    check_repetition,
    count_words,
    failed,
    spans,
)
from veripo_ray.verifier.judges import Case, Judge, Judgement
from veripo_ray.verifier.judges.case import judged
from veripo_ray.verifier.repetition import Repetition, repetitions

T = TypeVar("T")


class Item(Record):
    """One response to judge, with as much of its question as that takes."""

    question_id: str = Field("", max_length=1024)
    question: str = Field("", description="the question's text, for judges that read it")
    kind: Kind
    gold: str = Field(min_length=1)
    options: tuple[str, ...] = Field((), max_length=64)
    response: str

    @classmethod
    def of(cls, question: Question, response: str) -> Item:
        return cls(
            question_id=question.id,
            question=question.text,
            kind=question.kind,
            gold=question.gold,
            options=question.options,
            response=response,
        )


async def averify(
    items: Sequence[Item],
    judge: Judge,
    checks: config.Checks | None = None,
    count_tokens: CountTokens = count_words,
) -> list[Verdict]:
    """One verdict an item, in order. Never raises for a bad item: its verdict carries the error,
    and no other item notices. The checks run in a thread, the judge on the event loop."""
    cfg = checks or config.Checks()
    parts, own = await asyncio.to_thread(_checked, items, cfg, count_tokens)
    consistency = await _consistency(items, parts, judge)
    return [Verdict(checks=(*few, last)) for few, last in zip(own, consistency, strict=True)]


def verify(
    items: Sequence[Item],
    judge: Judge,
    checks: config.Checks | None = None,
    count_tokens: CountTokens = count_words,
) -> list[Verdict]:
    """As `averify`, for callers without an event loop, or in the middle of one (a notebook)."""
    return _run(averify(items, judge, checks, count_tokens))


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _checked(
    items: Sequence[Item], cfg: config.Checks, count_tokens: CountTokens
) -> tuple[list[Parts], list[tuple[Check, ...]]]:
    """Every response cut into its parts, and its checks but for consistency."""
    parts = [answers.split(item.response) for item in items]
    found = repetitions([part.thinking_text for part in parts], cfg.repetition_ngram)
    triples = zip(items, parts, found, strict=True)
    return parts, [_own_checks(*triple, cfg, count_tokens) for triple in triples]


def undecided(error: str) -> Verdict:
    """The verdict of an item that could not be checked at all."""
    return Verdict(checks=tuple(failed(name, error) for name in get_args(CheckName)))


def check_edited(item: Item, checks: config.Checks, count_tokens: CountTokens) -> tuple[Check, ...]:
    """Every check but consistency, which an editor knows by construction."""
    _, (own,) = _checked([item], checks, count_tokens)
    return own


def _own_checks(
    item: Item, parts: Parts, found: Repetition, cfg: config.Checks, count_tokens: CountTokens
) -> tuple[Check, ...]:
    return (
        check_format(parts),
        check_accuracy(parts, item.kind, item.gold, cfg, name=item.question_id or "(no id)"),
        check_length(parts, cfg, count_tokens),
        check_repetition(parts, found, cfg),
        check_reflection(parts, cfg),
    )


async def _consistency(items: Sequence[Item], parts: Sequence[Parts], judge: Judge) -> list[Check]:
    """Well-formed responses go to the judge in one batch; in others there is nothing to compare."""
    readable = [index for index, part in enumerate(parts) if part.well_formed]
    cases = [_case(items[index], parts[index]) for index in readable]
    judgements = await judged(judge, cases) if cases else []
    decided = dict(zip(readable, judgements, strict=True))
    return [_as_check(decided.get(index), part) for index, part in enumerate(parts)]


def _case(item: Item, parts: Parts) -> Case:
    return Case(
        question=item.question,
        kind=item.kind,
        options=item.options,
        thinking=parts.thinking_text,
        answer=parts.answer_text or "",
    )


def _as_check(judgement: Judgement | None, parts: Parts) -> Check:
    if judgement is None:
        reason = f"not judged, since the response is ill-formed: {parts.problem}"
        return Check(name="consistency", passed=None, reason=reason)
    evidence = spans((judgement.evidence,) if judgement.evidence else (), parts.thinking[0])
    return Check(
        name="consistency",
        passed=judgement.consistent if judgement.error is None else None,
        value=judgement.probability,
        reason=judgement.reason,
        evidence=evidence,
        error=judgement.error,
    )
