"""Runs a judge over labelled cases and gathers its figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from veripo_ray.errors import DataError
from veripo_ray.verifier.calibration import figures, thresholds
from veripo_ray.verifier.calibration.figures import Bin, Counts, Figure
from veripo_ray.verifier.calibration.thresholds import Threshold
from veripo_ray.verifier.judges import Judge, Judgement
from veripo_ray.verifier.labelled import Labelled


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds for 1,000 cases: of the clock, and of this process's CPU (a server's are its own)."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Part:
    """The figures of all cases, or of one split."""

    name: str
    counts: Counts
    kappa: Figure


@dataclass(frozen=True, slots=True)
class Remark:
    """A case on which label and judge do not agree. said: inconsistent, consistent, undecided or
    error; because: the judge's reason; why: the label's."""

    id: str
    split: str
    consistent: bool
    said: str
    because: str
    why: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """All that is known of a judge on one set of cases. parts: all cases first, then each split.
    The last three are empty or None for a judge without probabilities."""

    judge: str
    cases: int
    parts: tuple[Part, ...]
    cost: Cost
    remarks: tuple[Remark, ...]
    bins: tuple[Bin, ...] = ()
    calibration_error: float | None = None
    thresholds: tuple[Threshold, ...] = ()


async def measure(judge: Judge, labelled: Sequence[Labelled], *, seed: int = 0) -> Calibration:
    """Asks `judge` about every case at once; it bounds its own time and parallelism. Before the
    clock starts, it judges a case of each kind, so that connections and child processes exist.

    Raises what the judge raises, and DataError when it does not give one judgement a case.
    """
    await judge.judge([one.case for one in {one.kind: one for one in labelled}.values()])
    clock, cpu = time.perf_counter(), time.process_time()
    said = await judge.judge([one.case for one in labelled])
    per_thousand = 1000 / max(1, len(labelled))
    cost = Cost(
        seconds=(time.perf_counter() - clock) * per_thousand,
        cpu_seconds=(time.process_time() - cpu) * per_thousand,
    )
    if len(said) != len(labelled):
        raise DataError(f"the judge gave {len(said)} judgements for {len(labelled)} cases")
    return summarise(judge.name, labelled, said, cost, seed=seed)


def summarise(
    judge: str,
    labelled: Sequence[Labelled],
    said: Sequence[Judgement],
    cost: Cost,
    *,
    seed: int = 0,
) -> Calibration:
    """The figures of judgements that are already there."""
    pairs = list(zip(labelled, said, strict=True))
    parts = [_part("all", pairs, seed)]
    parts += [
        _part(split, [pair for pair in pairs if pair[0].split == split], seed)
        for split in sorted({one.split for one in labelled} - {""})
    ]
    sure = [(o.consistent, w.probability) for o, w in pairs if w.probability is not None]
    labels, probabilities = [label for label, _ in sure], [p for _, p in sure if p is not None]
    bins = tuple(figures.reliability(labels, probabilities))
    chosen = [
        thresholds.choose(labels, probabilities, objective, seed=seed)
        for objective in thresholds.OBJECTIVES
    ]
    return Calibration(
        judge=judge,
        cases=len(labelled),
        parts=tuple(parts),
        cost=cost,
        remarks=tuple(_remark(*pair) for pair in pairs if pair[1].consistent != pair[0].consistent),
        bins=bins,
        calibration_error=figures.expected_calibration_error(bins),
        thresholds=tuple(one for one in chosen if one is not None),
    )


def _part(name: str, pairs: Sequence[tuple[Labelled, Judgement]], seed: int) -> Part:
    counts = figures.count(
        [one.consistent for one, _ in pairs],
        [word.consistent for _, word in pairs],
        [word.error is not None for _, word in pairs],
    )
    return Part(name, counts, figures.kappa(counts, seed=seed))


def _remark(one: Labelled, word: Judgement) -> Remark:
    said = {True: "consistent", False: "inconsistent", None: "undecided"}[word.consistent]
    return Remark(
        id=one.id,
        split=one.split,
        consistent=one.consistent,
        said="error" if word.error is not None else said,
        because=word.error if word.error is not None else word.reason,
        why=one.why,
    )
