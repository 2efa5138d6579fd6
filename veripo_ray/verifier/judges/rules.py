"""The judge that reads the conclusion which the thinking itself states: no model, no network."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from veripo_ray.errors import ScoringError
from veripo_ray.records import Kind
from veripo_ray.scoring import answers, maths
from veripo_ray.verifier.judges import conclusions, quantities, units
from veripo_ray.verifier.judges.case import Case, Judgement
from veripo_ray.verifier.judges.choices import Options
from veripo_ray.verifier.judges.conclusions import Conclusion
from veripo_ray.verifier.judges.units import Quantity


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
    if len(case.answer) > answers.MAX_ANSWER_CHARACTERS:
        return None
    answered = (
        answers.leading_letter(case.answer)
        or Options.of(case.options).named(case.answer)
        or answers.lone_letter(case.answer)
    )
    return None if answered is None else answered == conclusion.value


def _same_number(conclusion: Conclusion, case: Case) -> bool | None:
    """In the unit of the answer or, where it has none, that of the question."""
    answered = quantities.answered(case.answer)
    if answered is None:
        return None
    unit = answered.unit or units.asked(case.question)
    concluded = Quantity(float(conclusion.value), conclusion.unit).within(unit)
    if concluded is None:
        return None
    close = math.isclose(concluded, answered.value, rel_tol=1e-9)
    return close or _rounds_to(concluded, answered.value)


def _rounds_to(concluded: float, answered: float) -> bool:
    """Whether one number is the other, written with fewer decimals (12.4 and 12)."""
    more, fewer = sorted((concluded, answered), key=_decimals, reverse=True)
    digits = _decimals(fewer)
    return _decimals(more) > digits and abs(more - fewer) <= 0.5 * 10.0**-digits


def _decimals(number: float) -> int:
    _, point, decimals = f"{number:.9f}".rstrip("0").partition(".")
    return len(decimals) if point else 0


def _same_formula(conclusion: Conclusion, case: Case) -> bool | None:
    """As they stand, or by what stands behind the last `=` of either."""
    if max(len(conclusion.value), len(case.answer)) > answers.MAX_ANSWER_CHARACTERS:
        return None
    if not (maths.parses(conclusion.value) and maths.parses(case.answer)):
        return None
    if maths.equal(conclusion.value, case.answer):
        return True
    ends = _right_side(conclusion.value), _right_side(case.answer)
    return ends != (conclusion.value, case.answer) and maths.equal(*ends)


def _right_side(formula: str) -> str:
    bare = formula.strip().strip("$")
    return bare.rpartition("=")[2].strip() if "=" in bare and "$" not in bare else formula


_COMPARE: dict[Kind, Callable[[Conclusion, Case], bool | None]] = {
    Kind.CHOICE: _same_choice,
    Kind.NUMERIC: _same_number,
    Kind.MATH: _same_formula,
}
