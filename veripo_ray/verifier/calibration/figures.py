"""The figures of a judge as pure functions of labels and what it said.

Positive means *inconsistent*: a judge is there to find contradictions. Cases that it leaves
undecided or fails on are neither right nor wrong; they count in `Counts` alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054  # two-sided 95%


@dataclass(frozen=True, slots=True)
class Figure:
    """value with a 95% interval [low, high]; None where it is not defined (0/0)."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """found: inconsistent and called so; missed: inconsistent, called consistent; false_alarms:
    consistent, called inconsistent; passed: consistent and called so."""

    found: int = 0
    missed: int = 0
    false_alarms: int = 0
    passed: int = 0
    undecided: int = 0
    errors: int = 0

    @property
    def decided(self) -> int:
        return self.found + self.missed + self.false_alarms + self.passed

    @property
    def total(self) -> int:
        return self.decided + self.undecided + self.errors

    @property
    def coverage(self) -> Figure:
        return wilson(self.decided, self.total)

    @property
    def accuracy(self) -> Figure:
        return wilson(self.found + self.passed, self.decided)

    @property
    def precision(self) -> Figure:
        return wilson(self.found, self.found + self.false_alarms)

    @property
    def recall(self) -> Figure:
        return wilson(self.found, self.found + self.missed)


def count(
    consistent: Sequence[bool], said: Sequence[bool | None], failed: Sequence[bool]
) -> Counts:
    """consistent: the labels; said: the judge, None for no decision; failed: it had an error."""
    names = {
        (False, False): "found",
        (False, True): "missed",
        (True, False): "false_alarms",
        (True, True): "passed",
    }
    counts: dict[str, int] = {}
    for label, word, error in zip(consistent, said, failed, strict=True):
        name = "errors" if error else "undecided" if word is None else names[label, word]
        counts[name] = counts.get(name, 0) + 1
    return Counts(**counts)


def wilson(hits: int, total: int) -> Figure:
    """A share with Wilson's score interval (E. B. Wilson, 1927)."""
    if not total:
        return Figure(None)
    share, spread = hits / total, Z**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    # at the edges the exact bound is the edge, which rounding may miss
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == total else min(1.0, centre + half)
    return Figure(share, low, high)


def kappa(counts: Counts, *, draws: int = 2000, seed: int = 0) -> Figure:
    """Cohen's kappa of the decided cases, with a percentile bootstrap over cases. Not defined where
    label and judge are both always the same; such draws are left out of the interval. Of a judge
    without a mistake every draw is 1: what a sample of that size can hide, accuracy's interval
    says."""
    cells = np.array([counts.found, counts.missed, counts.false_alarms, counts.passed])
    if not cells.sum():
        return Figure(None)
    (value,) = _kappas(cells[None])
    if math.isnan(value):
        return Figure(None)
    drawn = np.random.default_rng(seed).multinomial(cells.sum(), cells / cells.sum(), draws)
    low, high = np.nanquantile(_kappas(drawn), [0.025, 0.975])
    return Figure(float(value), float(low), float(high))


def _kappas(cells_D4: np.ndarray) -> np.ndarray:
    found, missed, false_alarms, passed = (cells_D4 / cells_D4.sum(1, keepdims=True)).T
    labelled, called = found + missed, found + false_alarms
    chance = labelled * called + (1 - labelled) * (1 - called)
    with np.errstate(invalid="ignore", divide="ignore"):
        kappas = (found + passed - chance) / (1 - chance)
    return np.where(1 - chance > 1e-12, kappas, np.nan)


@dataclass(frozen=True, slots=True)
class Bin:
    """Cases whose probability of being consistent lies in [low, high); the last bin includes 1.
    probability: their mean; observed: the share that is consistent."""

    low: float
    high: float
    cases: int
    probability: float
    observed: Figure


def reliability(
    consistent: Sequence[bool], probability: Sequence[float], bins: int = 10
) -> list[Bin]:
    """Bins of equal width that hold a case."""
    p, y = np.asarray(probability, float), np.asarray(consistent, bool)
    place = np.minimum((p * bins).astype(int), bins - 1)
    return [
        Bin(
            low=b / bins,
            high=(b + 1) / bins,
            cases=int((place == b).sum()),
            probability=float(p[place == b].mean()),
            observed=wilson(int(y[place == b].sum()), int((place == b).sum())),
        )
        for b in np.unique(place).tolist()
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float | None:
    """Mean of |probability - observed| over the bins, weighted by their cases (Naeini et al.,
    2015)."""
    total = sum(b.cases for b in bins)
    if not total:
        return None
    return sum(b.cases * abs(b.probability - (b.observed.value or 0.0)) for b in bins) / total
