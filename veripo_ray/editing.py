"""Edited responses: the sides of a pair that no policy sampled.

An edit keeps everything of its source but what its family is about, is checked again like any
response, and carries the outcome of the one check that holds by construction.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from veripo_ray import config
from veripo_ray.records import Check, Kind, Question, Response, Verdict
from veripo_ray.scoring import answers
from veripo_ray.verifier.tokens import Encode
from veripo_ray.verifier.verify import Item, check_edited


class Editor:
    """Edits the rollouts of one question. `encode` maps text to token ids [R] without a stop token;
    `stop_id` ends an edited response as it ends the sampled ones."""

    def __init__(
        self, question: Question, encode: Encode, stop_id: int, checks: config.Checks
    ) -> None:
        self._question, self._encode = question, encode
        self._stop_id, self._checks = stop_id, checks

    def contradict(
        self, chosen: Response, wrong: Sequence[str], rng: random.Random
    ) -> Response | None:
        """`chosen` with an answer that its thinking does not lead to: one of the `wrong` answers
        that other rollouts gave, or a made one. None where neither exists."""
        parts = answers.split(chosen.text)
        old, new = parts.answer_text or "", self._wrong_answer(parts, wrong, rng)
        if parts.answer is None or new is None:
            return None
        start, end = parts.answer
        text = chosen.text[:start] + _in_place_of(old, new) + chosen.text[end:]
        reason = f"edited: the thinking leads to {old.strip()!r}, but the answer is now {new!r}"
        edited = self._response(text, consistent=False, reason=reason)
        return edited if edited.verdict.correct is False else None

    def reflect(self, wrong: Response, right: Response, turn: str) -> Response | None:
        """Wrong thinking, a reflective turn, right thinking, right answer. None when the result is
        not right and clean."""
        parts, first = answers.split(right.text), answers.split(wrong.text).thinking_text.strip()
        start, end = parts.thinking
        second = right.text[start:end].lstrip()
        lead = right.text[start : end - len(second)]
        between = "\n\n" if "\n" in second.strip() else " "
        thinking = lead + between.join((first, turn.strip(), second))
        text = right.text[:start] + thinking + right.text[end:]
        reason = "edited: the thinking turns round and ends as the consistent response it came from"
        edited = self._response(text, consistent=True, reason=reason)
        return edited if edited.verdict.correct and edited.verdict.clean else None

    def _wrong_answer(
        self, parts: answers.Parts, wrong: Sequence[str], rng: random.Random
    ) -> str | None:
        kind, gold = self._question.kind, self._question.gold
        given = sorted({read for answer in wrong if (read := _plain_answer(kind, answer))})
        elsewhere = [answer for answer in given if answer != _plain_answer(kind, gold)]
        pool = elsewhere or _made_answers(self._question, parts.answer_text or "")
        return rng.choice(pool) if pool else None

    def _response(self, text: str, *, consistent: bool, reason: str) -> Response:
        own = check_edited(
            Item.of(self._question, text), self._checks, lambda part: len(self._encode(part))
        )
        last = Check(name="consistency", passed=consistent, reason=reason)
        ids = np.append(self._encode(text), self._stop_id).astype(np.int32)
        return Response(
            text=text, token_ids=ids, rollout=None, verdict=Verdict(checks=(*own, last))
        )


def _in_place_of(old: str, new: str) -> str:
    """`new` with the white space and the dollar signs of `old`."""
    core = old.strip()
    if len(core) > 1 and core[0] == core[-1] == "$":
        new = f"${new}$"
    start = len(old) - len(old.lstrip())
    return old[:start] + new + old[start + len(core) :]


def _plain_answer(kind: Kind, answer: str) -> str | None:
    """An answer without decoration: `B` of `B. red car`, `3` of `$3$ cars`."""
    match kind:
        case Kind.CHOICE:
            return answers.leading_letter(answer)
        case Kind.NUMERIC:
            number = answers.number(answer)
            return None if number is None else f"{number:.6g}"
        case Kind.MATH:
            return answer.strip(" \t\n$") or None


def _made_answers(question: Question, answer: str) -> list[str]:
    """Wrong answers of the right kind: another option's letter, a number not close to the gold.
    None for a formula: one that is wrong for certain cannot be made up."""
    if question.kind is Kind.CHOICE:
        letters = answers.LETTERS[: len(question.options) or 4].upper()
        return [letter for letter in letters if letter not in (question.gold + answer).upper()]
    gold = answers.number(question.gold) if question.kind is Kind.NUMERIC else None
    if gold is None:
        return []
    step = max(1, round(0.3 * abs(gold)))
    made = [value for value in (gold - step, gold + step) if value >= 0 or gold < 0]
    return [f"{value:.6g}" for value in made]
