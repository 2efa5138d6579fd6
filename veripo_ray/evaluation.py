"""The figures of a stage, from held-out groups and their verdicts, each with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from veripo_ray.records import Group, JudgedGroup, Verdict

Measure = Callable[[Verdict], float | None]


def stage_metrics(groups: Sequence[Group], judged: Sequence[JudgedGroup]) -> dict[str, float]:
    """Means over responses, `<name>_se` for each, `n` responses, `errors` left out.

    accuracy: r_a. inconsistency: share that failed the consistency check, of those it decided.
    correct_and_consistent, format, repetition (failed): shares of all responses.
    mean_think_tokens: tokens of the thinking. A verdict with an error counts nowhere but in
    `errors`; a figure of no responses is NaN. Standard errors take a question's responses as one
    cluster, since they are not independent.
    """
    clusters = [_usable(group, verdicts) for group, verdicts in zip(groups, judged, strict=True)]
    metrics: dict[str, float] = {}
    for name, measure in _MEASURES.items():
        values = [[v for v in map(measure, cluster) if v is not None] for cluster in clusters]
        metrics[name], metrics[f"{name}_se"] = mean_and_error(values)
    metrics["n"] = sum(map(len, clusters))
    metrics["errors"] = sum(len(group.rollouts) for group in groups) - metrics["n"]
    return metrics


def mean_and_error(clusters: Iterable[Sequence[float]]) -> tuple[float, float]:
    """Mean of all values and its cluster-robust standard error (ratio estimator, C / (C - 1)).

    With one value a cluster it is the usual s / sqrt(n). NaN where undefined.
    """
    filled = [cluster for cluster in clusters if cluster]
    total = sum(map(len, filled))
    if not total:
        return math.nan, math.nan
    mean = sum(map(sum, filled)) / total
    if len(filled) < 2:
        return mean, math.nan
    squares = sum((sum(cluster) - mean * len(cluster)) ** 2 for cluster in filled)
    return mean, math.sqrt(squares * len(filled) / (len(filled) - 1)) / total


def _usable(group: Group, judged: JudgedGroup) -> list[Verdict]:
    if group.id != judged.group_id:
        raise ValueError(f"verdicts of group {judged.group_id} came with group {group.id}")
    return [verdict for verdict in judged.verdicts if verdict.error is None]


def _inconsistent(verdict: Verdict) -> float | None:
    return None if verdict.consistent is None else float(not verdict.consistent)


_MEASURES: dict[str, Measure] = {
    "accuracy": lambda verdict: verdict["accuracy"].value,
    "inconsistency": _inconsistent,
    "correct_and_consistent": lambda v: float(v.correct is True and v.consistent is True),
    "mean_think_tokens": lambda verdict: verdict["length"].value,
    "repetition": lambda verdict: float(verdict["repetition"].passed is False),
    "format": lambda verdict: float(verdict["format"].passed is True),
}
