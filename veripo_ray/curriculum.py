"""Which questions the next GRPO phase sees. Source: VerIPO drops 80% of the solved prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from veripo_ray.records import Question

_SOLVED = 1.0 - 1e-9  # a mean of ones may miss 1 by rounding


def next_questions(
    questions: Sequence[Question],
    mean_accuracy: Mapping[str, float],
    drop_solved: float,
    rng: np.random.Generator,
) -> list[Question]:
    """`questions` in their order, without a random share `drop_solved` of the solved ones.

    Solved: the mean r_a over the group of the phase before is 1. A question that phase did not
    ask (absent from `mean_accuracy`) stays. The number dropped is rounded to the nearest.
    """
    solved = [q.id for q in questions if mean_accuracy.get(q.id, 0.0) >= _SOLVED]
    count = int(drop_solved * len(solved) + 0.5)
    dropped = {solved[index] for index in rng.permutation(len(solved))[:count]}
    return [question for question in questions if question.id not in dropped]


def phase_order(
    questions: Sequence[Question],
    mean_accuracy: Mapping[str, float],
    *,
    drop_solved: float,
    seed: int,
) -> list[str]:
    """Ids of the next phase's questions, shuffled; the same arguments give the same order."""
    rng = np.random.default_rng(seed)
    ids = [q.id for q in next_questions(questions, mean_accuracy, drop_solved, rng)]
    return [ids[index] for index in rng.permutation(len(ids))]
