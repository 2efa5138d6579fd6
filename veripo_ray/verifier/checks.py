"""Five of the verifier's six checks, each a typed result with a reason a person can read.

The sixth, consistency, is a judge's (see `judges` and `verify`). Definitions of VerIPO's
verifier beyond the names of its checks are not public; these are this project's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from veripo_ray import config
from veripo_ray.errors import VeripoError
from veripo_ray.records import Check, CheckName, Kind, Span
from veripo_ray.scoring import rewards
from veripo_ray.scoring.answers import Parts
from veripo_ray.verifier.repetition import Repetition

CountTokens = Callable[[str], int]
_MAX_SPANS = 8


def count_words(text: str) -> int:
    """Tokens by white space: exact in the tiny world, a stand-in where no tokenizer is given."""
    return len(text.split())


def failed(name: CheckName, error: str) -> Check:
    """A check that could not be done: neither passed nor failed."""
    return Check(name=name, passed=None, reason="the check could not be done", error=error)


# Results that many responses share are made once: most of a check's time is that of its record.
_WELL_FORMED = Check(
    name="format", passed=True, reason="one <think> block, then one <answer> block"
)


def check_format(parts: Parts) -> Check:
    if parts.well_formed:
        return _WELL_FORMED
    return Check(name="format", passed=False, reason=parts.problem)


def check_accuracy(parts: Parts, kind: Kind, gold: str, cfg: config.Checks, *, name: str) -> Check:
    """value is r_a. A numeric answer counts as right from `cfg.numeric_correct` on."""
    try:
        value = rewards.accuracy(kind, gold, parts.answer_text, name=name)
    except VeripoError as error:
        return failed("accuracy", error.problem)
    passed = value >= (cfg.numeric_correct if kind is Kind.NUMERIC else 1.0)
    reason = "there is no complete <answer> block"
    if parts.answer_text is not None:
        shown = " ".join(parts.answer_text.split())[:80]
        reason = f"the answer {shown!r} is {'right' if passed else 'wrong'}: r_a = {value:.3g}"
    evidence = spans((parts.answer,) if parts.answer else (), 0)
    return Check(name="accuracy", passed=passed, value=value, reason=reason, evidence=evidence)


def check_length(parts: Parts, cfg: config.Checks, count_tokens: CountTokens) -> Check:
    """value is the number of tokens of the thinking."""
    return _length(count_tokens(parts.thinking_text), cfg.min_think_tokens, cfg.max_think_tokens)


@lru_cache(maxsize=4096)
def _length(tokens: int, low: int, high: int) -> Check:
    reason = f"the thinking has {tokens} tokens"
    if tokens < low:
        reason += f", fewer than {low}"
    elif tokens > high:
        reason += f", more than {high}"
    return Check(name="length", passed=low <= tokens <= high, value=tokens, reason=reason)


_NO_REPETITION = Check(
    name="repetition", passed=True, value=0.0, reason="nothing in the thinking repeats itself"
)


def check_repetition(parts: Parts, found: Repetition, cfg: config.Checks) -> Check:
    """value is the share of the thinking's words that repeat earlier ones, as `found` in it."""
    if not found.spans:
        return _NO_REPETITION
    start, end = found.spans[0]
    shown = " ".join(parts.thinking_text[start : min(end, start + 60)].split())
    return Check(
        name="repetition",
        passed=found.share <= cfg.max_repetition,
        value=found.share,
        reason=f"{found.share:.0%} of the thinking repeats itself, as in {shown!r}",
        evidence=spans(found.spans, parts.thinking[0]),
    )


_NO_TURN = Check(name="reflection", passed=None, value=0, reason="no reflective turn")


def check_reflection(parts: Parts, cfg: config.Checks) -> Check:
    """value is the number of reflective turns. Passed: one stands inside the thinking, with
    something to reconsider before it and a continuation behind. None: there is no such turn, which
    is no fault. Not passed: there are some, but none in its place."""
    turns = _turns(parts.text, cfg.reflective_words)
    if not turns:
        return _NO_TURN
    placed = _placed(turns, parts)
    start, end = (placed or turns)[0]
    where = "inside the thinking" if placed else "with nothing to reconsider or to go on with"
    return Check(
        name="reflection",
        passed=bool(placed),
        value=len(placed),
        reason=f"{len(placed or turns)} reflective turn(s) {where}, as {parts.text[start:end]!r}",
        evidence=spans(tuple(placed or turns), 0),
    )


def _turns(text: str, words: tuple[str, ...]) -> list[tuple[int, int]]:
    lowered = text.replace("\u0130", "i").lower()  # only this letter grows when it is lowered
    stems, pattern = _phrases(words)
    if not any(stem in lowered for stem in stems):
        return []  # the usual case, for little
    return [match.span() for match in pattern.finditer(lowered)]


def _placed(turns: list[tuple[int, int]], parts: Parts) -> list[tuple[int, int]]:
    """Those that have something of the thinking before them, and something behind."""
    thinking, (first, last) = parts.thinking_text, parts.thinking
    lead = last - len(thinking.lstrip())
    tail = first + len(thinking.rstrip(" \t\n.,:;!?"))
    return [(start, end) for start, end in turns if lead < start and end < tail]


@lru_cache
def _phrases(words: tuple[str, ...]) -> tuple[tuple[str, ...], re.Pattern[str]]:
    """What every match holds, and any of the phrases as whole words, both for lowered text; a final
    `*` stands for any ending of the word."""
    phrases = sorted((word.lower() for word in words), key=len, reverse=True)
    stems = tuple(phrase.removesuffix("*") for phrase in phrases)
    patterns = [
        re.escape(stem) + (r"\w*+" if phrase.endswith("*") else "")
        for stem, phrase in zip(stems, phrases, strict=True)
    ]
    return stems, re.compile(rf"\b(?:{'|'.join(patterns)})\b")


def spans(found: tuple[tuple[int, int], ...], offset: int) -> tuple[Span, ...]:
    """Evidence: the first few [start, end), moved by `offset` characters."""
    return tuple(Span(start=s + offset, end=e + offset) for s, e in found[:_MAX_SPANS])
