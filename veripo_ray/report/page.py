"""Lays a run's data into the report's template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from veripo_ray.progress.formats import duration
from veripo_ray.records import Pair
from veripo_ray.report import markup, plots, words
from veripo_ray.report.gather import FamilyPairs, RunData, gather
from veripo_ray.report.plots import MEASURES, Plot
from veripo_ray.report.samples import Sample
from veripo_ray.runlog import Cost, Stage, Summary, write_atomic

REPORT = "report.html"
SHOWN_SAMPLES = 6
SHOWN_STAGES = 5  # of the responses to one question: the first four and the last
SHOWN_BAD_ITEMS = 50
SHOWN_METRICS = 12


@dataclass(frozen=True, slots=True)
class TrainingCurves:
    """The panels of one kind of phase, and the metrics that had no room."""

    phase: str
    plots: list[Plot]
    left_out: list[str]


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """What a sample of one kind of phase cost. `width` is relative to the dearest phase."""

    phase: str
    per_sample: float
    cost: Cost | None
    width: float

    def share(self, seconds: float) -> float:
        total = sum(self.cost.parts.values()) if self.cost else 0.0
        return seconds / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Example:
    """A family with its typical pair, ready to be shown."""

    family: FamilyPairs
    pair: Pair | None
    chosen: Markup
    rejected: Markup


def write_report(run_folder: Path) -> Path:
    """Writes report.html into the run's folder, from the files there, and returns its path.

    A run that stopped early gives a shorter report that says what is missing. DataError when the
    folder is none of a run's, or a file in it is damaged."""
    run_folder = Path(run_folder)
    html = render(gather(run_folder))
    return write_atomic(run_folder / REPORT, html)


def render(data: RunData) -> str:
    """The page. The same data gives the same text."""
    summary = data.summary
    return _environment().get_template("report.html.j2").render(
        data=data,
        summary=summary,
        name=data.folder.resolve().name,
        headline=words.headline(summary.stages),
        lead=words.lead(summary.stages),
        steps=words.steps(summary.stages),
        measures=MEASURES,
        stage_plots=plots.stage_plots(summary.stages),
        training=_training(data),
        costs=_costs(summary),
        examples=[_example(family) for family in data.families],
        samples=data.samples[:SHOWN_SAMPLES],
        stages_of=_stages_of,
        bad_items=summary.bad_items[:SHOWN_BAD_ITEMS],
        gap=_largest_gap(summary.stages),
        judges=words.judge_sentence(data.judges),
        videos=words.video_sentence(
            summary.videos, summary.decodes, summary.encodes, summary.feature_cache_hits
        ),
    )  # fmt: skip


def _environment() -> Environment:
    """Escapes everything, fails on a name that is not there, and lets no forbidden character by."""
    environment = Environment(
        loader=PackageLoader("veripo_ray.report", "templates"),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=duration,
        seconds=_seconds,
        value=words.value_text,
        minus=lambda number: f"{number:.2f}".replace("-", words.MINUS),
        response=markup.response,
    )
    return environment


def _clean(value: Any) -> Any:
    is_plain_text = isinstance(value, str) and not isinstance(value, Markup)
    return markup.readable(value) if is_plain_text else value


def _training(data: RunData) -> list[TrainingCurves]:
    phases = dict.fromkeys(point.phase for point in data.points)
    return [
        TrainingCurves(
            phase,
            plots.training_plots(data.points, phase, SHOWN_METRICS),
            plots.metric_names(data.points, phase)[SHOWN_METRICS:],
        )
        for phase in phases
    ]


def _costs(summary: Summary) -> list[PhaseCost]:
    measured = [
        (phase, seconds)
        for phase in ("grpo", "dpo")
        if (seconds := getattr(summary.seconds_per_sample, phase)) is not None
    ]
    dearest = max((seconds for _, seconds in measured), default=0.0) or 1.0
    return [
        PhaseCost(phase, seconds, summary.cost.get(phase), seconds / dearest)
        for phase, seconds in measured
    ]


def _example(family: FamilyPairs) -> Example:
    pair = family.example
    if pair is None:
        return Example(family, None, Markup(""), Markup(""))
    chosen, rejected = markup.compared(pair.chosen.text, pair.rejected.text)
    return Example(family, pair, chosen, rejected)


def _stages_of(sample: Sample) -> Sequence[str]:
    """Labels of the stages whose responses are shown."""
    labels = list(sample.responses)
    return labels if len(labels) <= SHOWN_STAGES else [*labels[: SHOWN_STAGES - 1], labels[-1]]


def _largest_gap(stages: Sequence[Stage]) -> float | None:
    gaps = [stage.logprob_gap_max for stage in stages if stage.logprob_gap_max is not None]
    return max(gaps, default=None)


def _seconds(value: float) -> str:
    """Short times in the unit that reads best."""
    if value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} s" if value < 100 else duration(value)
