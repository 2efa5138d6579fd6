"""The reliability diagram: how often what a judge calls likely is so."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from veripo_ray.errors import DataError
from veripo_ray.verifier.calibration.figures import Bin
from veripo_ray.verifier.calibration.measure import Calibration


def draw(calibration: Calibration, path: Path) -> None:
    """Write a PNG. Raises DataError for a judge that gives no probabilities."""
    if not calibration.bins:
        raise DataError(
            f"the judge {calibration.judge} gave no probabilities, so there is nothing to plot",
            fix="leave --plot out, or choose a judge that asks a model for log-probabilities",
        )
    figure = Figure(figsize=(4.2, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    shares, numbers = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    shares.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    points = [(one.probability, *_bounds(one)) for one in calibration.bins]
    means, observed, low, high = (list(column) for column in zip(*points, strict=True))
    below = [share - least for share, least in zip(observed, low, strict=True)]
    above = [most - share for share, most in zip(observed, high, strict=True)]
    shares.errorbar(means, observed, yerr=[below, above], fmt="o", capsize=2)
    shares.set(xlim=(0, 1), ylim=(-0.03, 1.03), ylabel="share consistent")
    shares.set_title(
        f"{calibration.judge}: expected calibration error {calibration.calibration_error:.3f}"
    )
    for one in calibration.bins:
        numbers.bar(one.low, one.cases, width=one.high - one.low, align="edge", color="0.7")
    numbers.set(xlabel="P(consistent) by the judge", ylabel="cases")
    figure.savefig(path, format="png")


def _bounds(one: Bin) -> tuple[float, float, float]:
    """The share that is consistent, and its interval; a bin holds a case, so there is one."""
    return one.observed.value or 0.0, one.observed.low or 0.0, one.observed.high or 0.0
