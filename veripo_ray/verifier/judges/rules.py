"""The judge that reads the conclusion which the thinking itself states: no model, no network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from veripo_ray.errors import ScoringError
from veripo_ray.records import Kind
from veripo_ray.scoring import answers, maths
from veripo_ray.verifier.judges import conclusions
from veripo_ray.verifier.judges.case import Case, Judgement
from veripo_ray.verifier.judges.conclusions import Conclusion


class Rules:
    """Compares the last conclusion in the thinking with the answer, as the question's kind asks.

    Exact on the tiny world's chains (`... so red B`); in prose it reads the usual phrases (see
    `conclusions`) and leaves undecided what it cannot read.
    """

    name = "rules"

    async def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        return await asyncio.to_thread(self.judge_now, cases)

    def judge_now(self, cases: Sequence[Case]) -> list[Judgement]:
        """As `judge`, in this thread."""
        return [_judge(case) for case in cases]


def _judge(case: Case) -> Judgement:
    conclusion = conclusions.find(case.thinking, case.kind, case.options)
    if conclusion is None:
        return Judgement(None, "the thinking states no conclusion that the rules can read")
    try:
        agree = _COMPARE[case.kind](conclusion, case)
    except ScoringError as error:
        return Judgement(None, "the comparison failed", conclusion.span, error.problem)
    answer = " ".join(case.answer.split())[:80]
    if agree is None:
        return Judgement(None, f"the answer {answer!r} cannot be read", conclusion.span)
    verb = "agrees with" if agree else "contradicts"
    reason = f"the thinking concludes {conclusion.value!r}, which {verb} the answer {answer!r}"
    return Judgement(agree, reason, conclusion.span)


def _same_choice(conclusion: Conclusion, case: Case) -> bool | None:
    answered = (
        answers.leading_letter(case.answer)
        or conclusions.option_in(case.answer, case.options)
        or answers.lone_letter(case.answer)
    )
    return None if answered is None else answered == conclusion.value


def _same_number(conclusion: Conclusion, case: Case) -> bool | None:
    concluded, answered = answers.number(conclusion.value), answers.number(case.answer)
    if concluded is None or answered is None:
        return None
    return concluded == answered or _rounds_to(concluded, answered)


def _rounds_to(concluded: float, answered: float) -> bool:
    """Whether one number is the other, written with fewer decimals (12.4 and 12)."""
    more, fewer = sorted((concluded, answered), key=_decimals, reverse=True)
    digits = _decimals(fewer)
    return _decimals(more) > digits and abs(more - fewer) <= 0.5 * 10.0**-digits


def _decimals(number: float) -> int:
    _, point, decimals = f"{number:.9f}".rstrip("0").partition(".")
    return len(decimals) if point else 0


def _same_formula(conclusion: Conclusion, case: Case) -> bool | None:
    if max(len(conclusion.value), len(case.answer)) > answers.MAX_ANSWER_CHARACTERS:
        return None
    if not maths.parses(case.answer):
        return None
    return maths.equal(conclusion.value, case.answer)


_COMPARE: dict[Kind, Callable[[Conclusion, Case], bool | None]] = {
    Kind.CHOICE: _same_choice,
    Kind.NUMERIC: _same_number,
    Kind.MATH: _same_formula,
}
