"""The threshold on the probability of being consistent that suits labelled cases best, and what it
is worth on cases that did not choose it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_LEAVE_ONE_OUT = 500  # so many cases at most; of more, ten folds

Objective = Callable[[np.ndarray], np.ndarray]
"""From cells [4, T] (found, missed, false alarms, passed, for T thresholds) to values [T]."""


def balanced_accuracy(cells_4T: np.ndarray) -> np.ndarray:
    """Mean of the shares of inconsistent and of consistent cases that are told as such."""
    found, missed, false_alarms, passed = cells_4T
    return (_share(found, found + missed) + _share(passed, passed + false_alarms)) / 2


def f1(cells_4T: np.ndarray) -> np.ndarray:
    """F1 of finding inconsistency."""
    found, missed, false_alarms, _ = cells_4T
    return _share(2 * found, 2 * found + missed + false_alarms)


OBJECTIVES: dict[str, Objective] = {
    "balanced accuracy": balanced_accuracy,
    "F1 of inconsistency": f1,
}


@dataclass(frozen=True, slots=True)
class Threshold:
    """A case is called consistent from `value` on. in_sample: the objective on the cases that chose
    it, which flatters; cross_validated: every case judged by the threshold that the others choose,
    in `folds` folds (as many as cases: leave one out)."""

    objective: str
    value: float
    in_sample: float
    cross_validated: float
    folds: int


def choose(
    consistent: Sequence[bool], probability: Sequence[float], objective: str, *, seed: int = 0
) -> Threshold | None:
    """The best threshold by an objective of OBJECTIVES; None unless both labels occur twice."""
    y, p = np.asarray(consistent, bool), np.asarray(probability, float)
    if min(y.sum(), (~y).sum()) < 2:
        return None
    measure = OBJECTIVES[objective]
    value = best(y, p, measure)
    folds = len(y) if len(y) <= _LEAVE_ONE_OUT else 10
    fold_of = np.random.default_rng(seed).permutation(np.arange(len(y)) % folds)
    margin = np.empty(len(y))  # over the threshold of the other folds
    for fold in range(folds):
        out = fold_of == fold
        margin[out] = p[out] - best(y[~out], p[~out], measure)
    return Threshold(
        objective=objective,
        value=value,
        in_sample=float(measure(_cells(y, p, np.array([value])))[0]),
        cross_validated=float(measure(_cells(y, margin, np.zeros(1)))[0]),
        folds=folds,
    )


def best(y: np.ndarray, p: np.ndarray, measure: Objective) -> float:
    """The threshold in [0, 1] that maximises `measure`: half way between neighbouring
    probabilities, of equals the one nearest to one half."""
    distinct = np.unique(p)
    lower, upper = distinct[:-1], distinct[1:]
    # Of two floats with none between them half the sum may be the lower one, which parts nothing.
    between = np.maximum((lower + upper) / 2, np.nextafter(lower, upper))
    candidates_T = np.unique(np.concatenate([[0.0, 1.0], between]))
    values_T = measure(_cells(y, p, candidates_T))
    ties = candidates_T[values_T >= values_T.max() - 1e-12]
    return float(ties[np.abs(ties - 0.5).argmin()])


def _cells(y: np.ndarray, p: np.ndarray, thresholds_T: np.ndarray) -> np.ndarray:
    """[4, T]: what becomes of the cases when they are called consistent from a threshold on."""
    order = np.argsort(p, kind="stable")
    below_T = np.searchsorted(p[order], thresholds_T, side="left")  # called inconsistent
    inconsistent = np.concatenate([[0], np.cumsum(~y[order])])
    found = inconsistent[below_T]
    false_alarms = below_T - found
    return np.stack([found, (~y).sum() - found, false_alarms, y.sum() - false_alarms])


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)
