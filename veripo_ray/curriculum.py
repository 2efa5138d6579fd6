"""Which questions the next GRPO phase sees. Source: VerIPO drops 80% of the solved prompts."""

from __future__ import annotations

import numpy as np

_SOLVED = 1.0 - 1e-6  # a mean of ones may miss 1 by the rounding of float32


def next_questions(
    accuracy_N: np.ndarray, drop_solved: float, rng: np.random.Generator
) -> np.ndarray:
    """Rows [M] int32 of the questions without a random share `drop_solved` of the solved ones.

    accuracy_N: mean r_a of each question's group when it was last asked, NaN where it never was.
    Solved: that mean is 1. A question never asked stays. The number dropped is rounded to the
    nearest; the rows left are in order.
    """
    solved = np.flatnonzero(accuracy_N >= _SOLVED)
    count = int(drop_solved * len(solved) + 0.5)
    stays_N = np.ones(len(accuracy_N), bool)
    stays_N[solved[rng.permutation(len(solved))[:count]]] = False
    return np.flatnonzero(stays_N).astype(np.int32)


def phase_order(accuracy_N: np.ndarray, *, drop_solved: float, seed: int) -> np.ndarray:
    """Rows [M] int32 of the next phase's questions, shuffled; the same arguments give the same."""
    rng = np.random.default_rng(seed)
    rows_M = next_questions(accuracy_N, drop_solved, rng)
    return rows_M[rng.permutation(len(rows_M))]
