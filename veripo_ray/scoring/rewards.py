"""r = r_a + r_f: how right an answer is, by the kind of its question, and whether the response
keeps the format. Definitions: VerIPO (arXiv 2505.19000), section 3.1, and its evaluation code."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from veripo_ray.errors import DataError, ScoringError
from veripo_ray.records import Group, Kind, Question, Reward
from veripo_ray.scoring import answers, maths

log = logging.getLogger(__name__)
FORMAT_REWARD = 0.5

# Ten thresholds theta = 0.50, 0.55, ..., 0.95. The count is an integer; the published code derives
# it from a quotient of floats. The floats are those of the published code, bit by bit: an error
# that falls exactly on a threshold (12 for 10) must count as it does there.
_TOLERANCES = tuple((1 - np.linspace(0.5, 0.95, 10)).tolist())


def reward(question: Question, text: str) -> Reward:
    """The reward of one response.

    Raises DataError when the gold answer is unusable (see `check_gold`) and ScoringError when
    a maths answer cannot be compared in time; neither is ever turned into a reward.
    """
    parts = answers.split(text)
    return Reward(
        accuracy=accuracy(question.kind, question.gold, parts.answer_text, name=question.id),
        format=FORMAT_REWARD if parts.well_formed else 0.0,
    )


def accuracy(kind: Kind, gold: str, answer: str | None, *, name: str) -> float:
    """r_a in [0, 1] of the text inside the answer tags; `name` is the question's id for errors.

    No complete answer block, or an answer from which nothing of the kind can be read, is wrong.
    """
    check_gold(kind, gold, name=name)
    if answer is None:
        return 0.0
    match kind:
        case Kind.CHOICE:
            return float(answers.letters_in(answer) == {_gold_letter(gold)})
        case Kind.NUMERIC:
            return _numeric(answers.number(gold), answers.number(answer))
        case Kind.MATH:
            short = len(answer) <= answers.MAX_ANSWER_CHARACTERS
            return float(short and maths.equal(gold, answer))


def rewarded(groups: Sequence[Group]) -> list[Group]:
    """The groups with r_a + r_f for every rollout. One with an answer that could not be compared in
    time is left out, and the log says so: no reward is ever made up."""
    made = []
    for group in groups:
        try:
            rewards = tuple(reward(group.question, rollout.text) for rollout in group.rollouts)
        except ScoringError as error:
            log.warning("group %s is left out: %s", group.id, error)
        else:
            made.append(group.model_copy(update={"rewards": rewards}))
    return made


def mean_relative_accuracy(predicted: float, gold: float) -> float:
    """MRA: the share of ten thresholds theta with |p - g| / |g| <= 1 - theta.

    Source: VSI-Bench's metric as VerIPO uses it: 9.5/10 -> 1.0, 9/10 -> 0.9, 12/10 -> 0.6,
    5/10 -> 0.1, 4.9/10 -> 0. Undefined there, decided here: for g = 0 only p = 0 is right (1.0,
    else 0.0), and the sign of g does not matter (the published code divides by g itself, so that
    any prediction is right for a negative one).
    """
    if gold == 0:
        return float(predicted == 0)
    error = abs(predicted - gold) / abs(gold)
    return sum(error <= tolerance for tolerance in _TOLERANCES) / len(_TOLERANCES)


def check_gold(kind: Kind, gold: str, *, name: str, options: int = 0) -> None:
    """Raise DataError, naming the question, unless `gold` can be compared with an answer."""
    match kind:
        case Kind.CHOICE:
            last = answers.LETTERS[:options][-1] if options else answers.LETTERS[-1]
            found = _gold_letter(gold)
            good, wanted = found is not None and found <= last, f"one letter, A to {last.upper()}"
        case Kind.NUMERIC:
            good, wanted = answers.number(gold) is not None, "one number"
        case Kind.MATH:
            good, wanted = maths.parses(gold), "LaTeX that math_verify can parse"
    if not good:
        raise DataError(
            f"question {name}: the gold answer {gold[:80]!r} of kind {kind} cannot be read",
            fix=f"write it as {wanted}, or correct the question's kind",
        )


def _gold_letter(gold: str) -> str | None:
    stripped = gold.strip(" $().\t\n").casefold()
    return stripped if len(stripped) == 1 and stripped in answers.LETTERS else None


def _numeric(gold: float | None, predicted: float | None) -> float:
    return 0.0 if gold is None or predicted is None else mean_relative_accuracy(predicted, gold)
