"""The report's curves as inline SVG that follows the page's colours, in light, dark and print.

matplotlib draws with stand-in colours; they are replaced by the page's CSS variables, and text is
kept as text in the page's font. The same data gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from veripo_ray.runlog import Point, Stage

SIZE_INCHES = (3.5, 2.1)
MAX_POINTS = 300  # of one curve; more are averaged in bins
STAND_INS = {
    "initial": "#000101",
    "grpo": "#000102",
    "dpo": "#000103",
    "sft": "#000104",
    "ink": "#000105",
    "muted": "#000106",
    "rule": "#000107",
}
MARKERS = {"initial": "D", "grpo": "o", "dpo": "s", "sft": "^"}  # told apart without colour, too
STYLE = {
    "svg.hashsalt": "veripo-ray",
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": STAND_INS["rule"],
    "axes.labelcolor": STAND_INS["muted"],
    "text.color": STAND_INS["ink"],
    "xtick.color": STAND_INS["rule"],
    "ytick.color": STAND_INS["rule"],
    "xtick.labelcolor": STAND_INS["muted"],
    "ytick.labelcolor": STAND_INS["muted"],
    "grid.color": STAND_INS["rule"],
    "grid.linewidth": 0.5,
}


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class Measure:
    """A field of Stage with its name for readers."""

    field: str
    title: str
    percent: bool = True


MEASURES = (
    Measure("accuracy", "Accuracy"),
    Measure("inconsistency", "Inconsistency"),
    Measure("correct_and_consistent", "Correct and consistent"),
    Measure("mean_think_tokens", "Tokens of thinking", percent=False),
    Measure("repetition", "Repetitive responses"),
    Measure("format", "Well-formed responses"),
)

TITLES = {  # in the order in which they are shown; others follow under their own name
    "reward": "Reward",
    "accuracy": "Accuracy of the rollouts",
    "inconsistency": "Inconsistency of the rollouts",
    "loss": "Loss",
    "margin": "Margin of chosen over rejected",
    "chosen_reward": "Implicit reward of the chosen",
    "rejected_reward": "Implicit reward of the rejected",
    "response_tokens": "Tokens of a response",
    "logprob_gap_max": "Largest gap to the rollout worker, nats",
    "grad_norm": "Gradient norm",
    "entropy": "Entropy, nats",
    "tokens_per_second": "Tokens sampled a second",
    "informative_groups": "Share of groups with a signal",
    "clip_fraction": "Share of clipped tokens",
    "seconds": "Seconds a step",
}
PHASE_TITLES = {("dpo", "accuracy"): "Share of pairs ranked rightly"}
NOT_PLOTTED = ("policy_version",)  # a step counter
LOGARITHMIC = ("logprob_gap_max",)


def stage_plots(stages: Sequence[Stage]) -> list[Plot]:
    """One panel a measure, a point a stage, with one standard error either way."""
    return [_stage_plot(stages, measure) for measure in MEASURES if _known(stages, measure.field)]


def training_plots(points: Sequence[Point], phase: str, limit: int = 12) -> list[Plot]:
    """One panel a metric of this phase, over its optimiser steps, iterations side by side."""
    own = [point for point in points if point.phase == phase]
    return [_training_plot(own, phase, name) for name in metric_names(points, phase)[:limit]]


def metric_names(points: Sequence[Point], phase: str) -> list[str]:
    """Metrics that have a number in this phase: those every reader knows first, then the others."""
    found: dict[str, None] = {}
    for point in points:
        if point.phase == phase:
            found.update((n, None) for n, value in point.values.items() if math.isfinite(value))
    known = [name for name in TITLES if name in found]
    return known + [n for n in found if n not in TITLES and n not in NOT_PLOTTED]


def _known(stages: Sequence[Stage], field: str) -> bool:
    return any(getattr(stage, field) is not None for stage in stages)


def _stage_plot(stages: Sequence[Stage], measure: Measure) -> Plot:
    def draw(axes: Axes) -> None:
        shown = [(i, s) for i, s in enumerate(stages) if getattr(s, measure.field) is not None]
        values = [getattr(stage, measure.field) for _, stage in shown]
        axes.plot([i for i, _ in shown], values, color=STAND_INS["rule"], linewidth=1.2, zorder=1)
        for (place, stage), value in zip(shown, values, strict=True):
            _stage_point(axes, place, stage, measure, value)
        _label_stages(axes, stages)
        axes.margins(y=0.28)
        if measure.percent:
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, -0.02), min(high, 1.08))
            digits = 0 if high - low > 0.05 else 1  # or neighbouring ticks would read the same
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.{digits}f}%"))

    values = ", ".join(f"{s.label} {_short(getattr(s, measure.field), measure)}" for s in stages)
    return Plot(measure.title, _svg(draw, f"stage-{measure.field}", f"{measure.title}: {values}"))


def _stage_point(axes: Axes, place: int, stage: Stage, measure: Measure, value: float) -> None:
    color = STAND_INS[stage.phase]
    error = getattr(stage, f"{measure.field}_se")
    axes.errorbar(
        place, value, yerr=error, fmt=MARKERS[stage.phase], color=color, markersize=5, capsize=3,
        elinewidth=1.1, capthick=1.1, zorder=2,
    )  # fmt: skip
    axes.annotate(
        _short(value, measure), (place, value + (error or 0)), xytext=(0, 4),
        textcoords="offset points", ha="center", va="bottom", fontsize=8,
    )  # fmt: skip


def _short(value: float | None, measure: Measure) -> str:
    if value is None:
        return "unknown"
    return f"{100 * value:.1f}%" if measure.percent else f"{value:.1f}"


def _label_stages(axes: Axes, stages: Sequence[Stage]) -> None:
    every = -(-len(stages) // 6)  # at most six labels fit
    places = range(0, len(stages), every)
    axes.set_xticks(list(places), [stages[place].label for place in places])
    axes.set_xlim(-0.5, len(stages) - 0.5)


def _training_plot(points: Sequence[Point], phase: str, name: str) -> Plot:
    iterations = sorted({point.iteration for point in points})

    def draw(axes: Axes) -> None:
        start = 0
        for iteration in iterations:
            values = [p.values.get(name, math.nan) for p in points if p.iteration == iteration]
            _curve(axes, start, np.asarray(values, dtype=float), STAND_INS[_color(phase)])
            if start:
                axes.axvline(start + 0.5, color=STAND_INS["muted"], linewidth=0.8, linestyle=":")
            if len(iterations) > 1:
                _name_iteration(axes, start, f"{phase} {iteration}")
            start += len(values)
        if name in LOGARITHMIC and _positive(points, name):
            _logarithmic(axes)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    title = training_title(phase, name)
    return Plot(title, _svg(draw, f"{phase}-{name}", f"{title} over {len(points)} {phase} steps"))


def training_title(phase: str, name: str) -> str:
    own = PHASE_TITLES.get((phase, name)) or TITLES.get(name)
    return own or name.replace("_", " ").capitalize()


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _color(phase: str) -> str:
    return phase if phase in MARKERS else "muted"


def _positive(points: Sequence[Point], name: str) -> bool:
    values = [point.values[name] for point in points if name in point.values]
    return all(value > 0 for value in values if math.isfinite(value))


def _curve(axes: Axes, start: int, values: np.ndarray, color: str) -> None:
    steps, means = binned(values, MAX_POINTS)
    marker = "o" if len(values) <= 40 else ""
    axes.plot(start + steps, means, color=color, linewidth=1.3, marker=marker, markersize=2.6)


def binned(values: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps (from 1) and values [n], as means of equal bins when there are more than `limit`.
    A bin without a finite value is NaN: a gap in the curve."""
    steps = np.arange(1, len(values) + 1, dtype=float)
    finite = np.where(np.isfinite(values), values, np.nan)
    if len(values) <= limit:
        return steps, finite
    bins = np.array_split(np.arange(len(values)), limit)
    return np.array([steps[b].mean() for b in bins]), np.array([_mean(finite[b]) for b in bins])


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _name_iteration(axes: Axes, start: int, label: str) -> None:
    transform: Any = axes.get_xaxis_transform()
    axes.text(
        start + 0.7, 1.02, label, transform=transform, fontsize=7, color=STAND_INS["muted"]
    )  # fmt: skip


def _svg(draw: Callable[[Axes], None], name: str, description: str) -> Markup:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE_INCHES)
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.13, 0.19, 0.84, 0.71))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(length=2)
        draw(axes)
        buffer = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), re.sub(r"\W+", "-", name), description)


def _inline(svg: str, name: str, description: str) -> Markup:
    """Takes an SVG document to a piece of HTML: unique ids, no addresses, the page's colours."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    view_box = re.search(r'viewBox="[^"]*"', body)
    assert view_box, "matplotlib writes a viewBox"
    opening = (
        f'<svg {view_box.group()} role="img" aria-label="{escape(description)}"'
        ' preserveAspectRatio="xMidYMid meet">'
    )
    body = re.sub(r"<svg[^>]*>", lambda _: opening, body, count=1)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', body)
    body = body.replace("url(#", f"url(#{name}-")
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", body)
    for variable, color in STAND_INS.items():
        body = body.replace(color, f"var(--{variable})")
    return Markup(body)
