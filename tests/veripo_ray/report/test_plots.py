"""Curves: every point where it belongs, the page's colours, the same bytes each time."""

from __future__ import annotations

import math
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.report import plots
from veripo_ray.runlog import Point, Summary


def point(step: int, phase: str = "grpo", iteration: int = 1, **values: float) -> Point:
    return Point(phase=phase, iteration=iteration, step=step, time=0.0, values=values)


def test_plots_hold_no_fixed_colour_and_no_address(run_summary: Summary) -> None:
    for plot in plots.stage_plots(run_summary.stages):
        assert "http" not in plot.svg
        assert re.findall(r"#[0-9a-f]{6}\b", plot.svg) == []
        assert "var(--grpo)" in plot.svg
        assert "var(--dpo)" in plot.svg


def test_a_plot_describes_itself_to_those_who_cannot_see_it(run_summary: Summary) -> None:
    (accuracy, *_) = plots.stage_plots(run_summary.stages)
    assert 'aria-label="Accuracy: initial 31.2%, grpo 1 58.1%' in accuracy.svg


def test_the_same_stages_give_the_same_bytes(run_summary: Summary) -> None:
    assert plots.stage_plots(run_summary.stages) == plots.stage_plots(run_summary.stages)


def test_a_measure_no_stage_has_is_left_out(run_summary: Summary) -> None:
    blind = [s.model_copy(update={"inconsistency": None}) for s in run_summary.stages]
    assert "Inconsistency" not in [plot.title for plot in plots.stage_plots(blind)]
    half = [*blind[:1], *run_summary.stages[1:]]
    assert "initial unknown" in plots.stage_plots(half)[1].svg


def test_known_metrics_come_first_and_counters_not_at_all() -> None:
    points = [point(1, own=1.0, grad_norm=1.0, policy_version=3.0, loss=0.1, lost=math.nan)]
    assert plots.metric_names(points, "grpo") == ["loss", "grad_norm", "own"]
    assert plots.metric_names(points, "dpo") == []


def test_a_metric_is_named_for_its_phase() -> None:
    assert plots.training_title("grpo", "accuracy") == "Accuracy of the rollouts"
    assert plots.training_title("dpo", "accuracy") == "Share of pairs ranked rightly"
    assert plots.training_title("dpo", "my_metric") == "My metric"


def test_iterations_are_drawn_beside_each_other() -> None:
    points = [point(s, iteration=i, loss=0.1 * s) for i in (1, 2) for s in (1, 2, 3)]
    (plot,) = plots.training_plots(points, "grpo")
    assert ">grpo 1<" in plot.svg
    assert ">grpo 2<" in plot.svg


def test_holes_zeros_and_strange_phases_are_drawn_without_a_word() -> None:
    gaps = [point(1, logprob_gap_max=0.0), point(2, other=math.inf), point(3, logprob_gap_max=1e-6)]
    assert len(plots.training_plots(gaps, "grpo")) == 1
    assert "var(--muted)" in plots.training_plots([point(1, "sleep", loss=1.0)], "sleep")[0].svg


@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=200),
    st.integers(1, 50),
)
def test_binning_keeps_the_mean_and_the_limit(values: list[float], limit: int) -> None:
    steps, means = plots.binned(np.asarray(values), limit)
    assert len(steps) == len(means) == min(len(values), limit)
    assert np.all(np.diff(steps) > 0)
    known = np.asarray(values)[~np.isnan(values)]
    if known.size:
        assert np.nanmin(means) >= known.min() - 1e-6
        assert np.nanmax(means) <= known.max() + 1e-6
    else:
        assert np.isnan(means).all()
