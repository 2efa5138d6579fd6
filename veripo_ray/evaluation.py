"""The figures of a stage, from held-out groups and their verdicts, each with its standard error."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Sequence

from veripo_ray.records import Group, JudgedGroup, Verdict

Measure = Callable[[Verdict], float | None]


class StageFigures:
    """The figures of a stage from groups that come batch by batch and are not kept: 16 bytes a
    group and figure are."""

    def __init__(self) -> None:
        self._clusters = {name: Clusters() for name in _MEASURES}
        self._responses = self._usable = 0

    def add(self, groups: Sequence[Group], judged: Sequence[JudgedGroup]) -> None:
        """Count these groups with their verdicts, which are in the same order."""
        for group, verdicts in zip(groups, judged, strict=True):
            cluster = _usable(group, verdicts)
            self._responses += len(group.rollouts)
            self._usable += len(cluster)
            for name, measure in _MEASURES.items():
                self._clusters[name].add([v for v in map(measure, cluster) if v is not None])

    def metrics(self) -> dict[str, float]:
        """Means over responses, `<name>_se` for each, `n` responses, `errors` left out.

        accuracy: r_a. inconsistency: share that failed the consistency check, of those it decided.
        correct_and_consistent, format, repetition (failed): shares of all responses.
        mean_think_tokens: tokens of the thinking. A verdict with an error counts nowhere but in
        `errors`; a figure of no responses is NaN. Standard errors take a question's responses as
        one cluster, since they are not independent.
        """
        metrics: dict[str, float] = {}
        for name, clusters in self._clusters.items():
            metrics[name], metrics[f"{name}_se"] = clusters.mean_and_error()
        metrics["n"] = self._usable
        metrics["errors"] = self._responses - self._usable
        return metrics


class Clusters:
    """Values in clusters, of which the sum and the number are all that a mean needs."""

    def __init__(self, clusters: Iterable[Sequence[float]] = ()) -> None:
        self._sums, self._counts = array("d"), array("q")
        for cluster in clusters:
            self.add(cluster)

    def add(self, cluster: Sequence[float]) -> None:
        if cluster:
            self._sums.append(sum(cluster))
            self._counts.append(len(cluster))

    def mean_and_error(self) -> tuple[float, float]:
        """Mean of all values and its cluster-robust standard error (ratio estimator, C / (C - 1)).

        With one value a cluster it is the usual s / sqrt(n). NaN where undefined.
        """
        total, clusters = sum(self._counts), len(self._sums)
        if not total:
            return math.nan, math.nan
        mean = sum(self._sums) / total
        if clusters < 2:
            return mean, math.nan
        pairs = zip(self._sums, self._counts, strict=True)
        squares = sum((sum_ - mean * count) ** 2 for sum_, count in pairs)
        return mean, math.sqrt(squares * clusters / (clusters - 1)) / total


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
