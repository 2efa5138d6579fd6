"""Everything the report shows, read from a run's folder. What is missing is None or empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from veripo_ray import journal
from veripo_ray.errors import DataError
from veripo_ray.records import CHECKS, Family, JudgedGroup, Pair
from veripo_ray.report.samples import Sample, read_samples
from veripo_ray.runlog import Judges, Point, Summary, read_metrics, read_summary

CONFIG = "config.yaml"
CANDIDATES = 101  # of each family, among which the typical pair is shown


@dataclass(frozen=True, slots=True)
class FamilyPairs:
    """How many pairs of a family the journal holds, and a typical one."""

    family: Family
    count: int
    example: Pair | None


@dataclass(slots=True)
class CheckCount:
    """Results of one check over all judged rollouts. Undecided: neither passed nor failed."""

    passed: int = 0
    failed: int = 0
    undecided: int = 0
    errors: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class RunData:
    folder: Path
    config_yaml: str
    summary: Summary
    points: list[Point]
    families: tuple[FamilyPairs, ...]
    checks: dict[str, CheckCount]
    judged_groups: int
    failed_groups: int
    samples: tuple[Sample, ...]
    judges: Judges | None

    @property
    def pairs(self) -> int:
        return sum(family.count for family in self.families)


def gather(folder: Path) -> RunData:
    """Reads a run's folder. DataError if it is none, or if a file in it is damaged."""
    folder = Path(folder)
    config_path = folder / CONFIG
    summary = read_summary(folder)
    if summary is None and not config_path.exists():
        raise DataError(
            f"{folder} is not the folder of a run: neither config.yaml nor summary.json is there",
            fix="give the folder that `veripo train` printed, for example runs/quickstart",
        )
    config_yaml = config_path.read_text() if config_path.exists() else ""
    judged, failed, checks = _count_checks(journal.read_judged(folder))
    return RunData(
        folder=folder,
        config_yaml=config_yaml,
        summary=summary or Summary(),
        points=read_metrics(folder),
        families=_families(journal.read_pairs(folder)),
        checks=checks,
        judged_groups=judged,
        failed_groups=failed,
        samples=read_samples(folder),
        judges=_judges(summary, config_yaml),
    )


def _families(pairs: Iterator[Pair]) -> tuple[FamilyPairs, ...]:
    counts: Counter[Family] = Counter()
    candidates: dict[Family, list[Pair]] = {family: [] for family in Family}
    for pair in pairs:
        counts[pair.family] += 1
        if len(candidates[pair.family]) < CANDIDATES:
            candidates[pair.family].append(pair)
    return tuple(FamilyPairs(f, counts[f], _typical(candidates[f])) for f in Family)


def _typical(pairs: list[Pair]) -> Pair | None:
    """The pair of median length: neither picked for looks nor the extreme one."""
    by_length = sorted(pairs, key=lambda p: (len(p.chosen.text) + len(p.rejected.text), p.id))
    return by_length[len(by_length) // 2] if by_length else None


def _count_checks(judged: Iterator[JudgedGroup]) -> tuple[int, int, dict[str, CheckCount]]:
    """Groups that were judged, groups that failed as a whole, and the results of each check."""
    groups = failed = 0
    counts = {name: CheckCount() for name in CHECKS}
    for group in judged:
        failed += group.error is not None
        groups += group.error is None
        for verdict in group.verdicts:
            for check in verdict.checks:
                _count(counts[check.name], check.passed, check.error)
    return groups, failed, counts


def _count(count: CheckCount, passed: bool | None, error: str | None) -> None:
    if passed is None:
        count.undecided += 1
    elif passed:
        count.passed += 1
    else:
        count.failed += 1
    if error:
        count.errors[error] += 1


def _judges(summary: Summary | None, config_yaml: str) -> Judges | None:
    """As the run recorded them; else as it was configured to choose them."""
    if summary is not None and summary.judges is not None:
        return summary.judges
    settings: Any = yaml.safe_load(config_yaml) if config_yaml else None
    curation = _setting(settings, "verifier", "judge")
    evaluation = _setting(settings, "evaluation", "judge") or curation
    return Judges(curation=curation, evaluation=evaluation) if curation and evaluation else None


def _setting(settings: Any, section: str, name: str) -> str | None:
    found = settings.get(section) if isinstance(settings, dict) else None
    value = found.get(name) if isinstance(found, dict) else None
    return value if isinstance(value, str) else None
