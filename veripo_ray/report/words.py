"""Numbers put into words: what changed, by how much, and whether that is more than its error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from veripo_ray.progress.formats import UNKNOWN
from veripo_ray.report.plots import MEASURES, Measure
from veripo_ray.runlog import Judges, Stage

MINUS = "\N{MINUS SIGN}"
HEADLINE = ("accuracy", "inconsistency", "correct_and_consistent")
NOUNS = {"correct_and_consistent": "the share of correct and consistent responses"}
BETTER_LOW = ("inconsistency", "repetition")


@dataclass(frozen=True, slots=True)
class Change:
    """One measure from one stage to another. `error` is that of the difference, if known."""

    measure: Measure
    before: float
    after: float
    before_error: float | None
    after_error: float | None

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def error(self) -> float | None:
        """Standard error of the difference, the two stages taken as independent samples."""
        if self.before_error is None or self.after_error is None:
            return None
        return math.hypot(self.before_error, self.after_error)

    @property
    def verdict(self) -> Literal["better", "worse", "unclear", "neutral"]:
        """Unclear: within two standard errors, or without any."""
        if self.error is None or abs(self.difference) <= 2 * self.error:
            return "unclear"
        if not self.measure.percent:
            return "neutral"  # longer thinking is neither good nor bad
        wanted_down = self.measure.field in BETTER_LOW
        return "better" if (self.difference < 0) == wanted_down else "worse"

    @property
    def amount(self) -> str:
        """'+26.9 ± 3.3 points'."""
        scale, unit = (100, " points") if self.measure.percent else (1, " tokens")
        return f"{signed(scale * self.difference)}{error_text(self.error, scale)}{unit}"

    @property
    def before_text(self) -> str:
        return value_text(self.measure, self.before, self.before_error)

    @property
    def after_text(self) -> str:
        return value_text(self.measure, self.after, self.after_error)

    @property
    def clause(self) -> str:
        """'accuracy rose by 34.3 ± 3.3 points'."""
        name = NOUNS.get(self.measure.field, self.measure.title.lower())
        if self.error is None:
            return f"{name} went from {self.before_text} to {self.after_text}, errors unknown"
        if self.verdict == "unclear":
            return f"{name} did not change beyond its error ({self.amount})"
        by = f"by {self.amount.lstrip('+' + MINUS)}"
        return f"{name} {'rose' if self.difference > 0 else 'fell'} {by}"


def change(before: Stage, after: Stage, field: str) -> Change | None:
    """None when either stage could not measure it."""
    measure = next(m for m in MEASURES if m.field == field)
    values = getattr(before, field), getattr(after, field)
    if values[0] is None or values[1] is None:
        return None
    errors = getattr(before, f"{field}_se"), getattr(after, f"{field}_se")
    return Change(measure, values[0], values[1], errors[0], errors[1])


def headline(stages: Sequence[Stage]) -> list[Change]:
    """The main measures from the first stage to the last."""
    if len(stages) < 2:
        return []
    changes = (change(stages[0], stages[-1], field) for field in HEADLINE)
    return [found for found in changes if found is not None]


def lead(stages: Sequence[Stage]) -> str:
    """What happened, in a sentence or two; '' with fewer than two stages."""
    changes = headline(stages)
    if not changes:
        return ""
    phases = len(stages) - 1
    over = f"Over {phases} phases" if phases > 1 else f"In one phase, {stages[-1].label},"
    sentences = [f"{over} {_listed([change.clause for change in changes])}."]
    if phases > 1:
        sentences += _where(stages, "accuracy", 1, "gain in accuracy")
        sentences += _where(stages, "inconsistency", -1, "drop in inconsistency")
    return " ".join(sentences)


def _listed(clauses: list[str]) -> str:
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])}, and {clauses[-1]}"


def _where(stages: Sequence[Stage], field: str, direction: int, name: str) -> list[str]:
    """Which phase moved a measure the most in the wanted direction, if one did beyond its error."""
    place = HEADLINE.index(field)
    moved = [(step.stage.label, step.changes[place]) for step in steps(stages)]
    good = [(label, c) for label, c in moved if c is not None and c.verdict == "better"]
    if not good:
        return []
    label, largest = max(good, key=lambda item: direction * item[1].difference)
    return [f"The largest {name} came with {label} ({largest.amount})."]


@dataclass(frozen=True, slots=True)
class Step:
    """What one phase changed."""

    stage: Stage
    changes: tuple[Change | None, ...]  # in the order of HEADLINE


def steps(stages: Sequence[Stage]) -> list[Step]:
    """Every phase against the stage before it."""
    return [
        Step(after, tuple(change(before, after, field) for field in HEADLINE))
        for before, after in pairwise(stages)
    ]


def judge_sentence(judges: Judges | None) -> str:
    if judges is None:
        return "The run did not record who judged consistency."
    if judges.curation == judges.evaluation:
        return (
            f"The same judge, “{judges.curation}”, chose the preference pairs and measured the"
            " inconsistency shown here: the loop is graded by the yardstick it was trained on."
            " A judge that was held out of training is needed before the gain in consistency is"
            " taken for more than agreement with this judge."
        )
    return (
        f"“{judges.curation}” chose the preference pairs; “{judges.evaluation}”, which took no part"
        " in training, measured the inconsistency shown here."
    )


def video_sentence(videos: int, decodes: int, encodes: int, cache_hits: int = 0) -> str:
    if not videos:
        return "No video was counted."
    if decodes == encodes == videos:
        return f"Each of the {videos:,} distinct clips was decoded once and encoded once."
    if not encodes and not cache_hits:  # nothing was encoded ahead of its use
        return (
            f"{videos:,} distinct clips were decoded {decodes:,} times; the vision tower, which "
            "learned, saw them anew in every pass."
        )
    found = f"; {cache_hits:,} times features were found on disk" if cache_hits else ""
    return (
        f"{videos:,} distinct clips were decoded {decodes:,} and encoded {encodes:,} times{found}."
    )


def value_text(measure: Measure, value: float | None, error: float | None) -> str:
    """'31.2 ± 2.3%', '24.8 ± 0.4'."""
    if value is None:
        return UNKNOWN
    scale, unit = (100, "%") if measure.percent else (1, "")
    return f"{scale * value:.1f}{error_text(error, scale)}{unit}"


def error_text(error: float | None, scale: float) -> str:
    return "" if error is None else f" ± {scale * error:.1f}"


def signed(value: float) -> str:
    """With a true minus sign, and no sign on what rounds to zero."""
    text = f"{abs(value):.1f}"
    if float(text) == 0:
        return text
    return f"+{text}" if value > 0 else f"{MINUS}{text}"
