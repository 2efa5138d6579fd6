"""A calibration as plain JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from veripo_ray.verifier.calibration.figures import Figure
from veripo_ray.verifier.calibration.measure import Calibration, Part


def figures_of(part: Part) -> dict[str, Figure]:
    """The shares and kappa of a part, by the names that the table and the JSON use."""
    return {
        "decided": part.counts.coverage,
        "accuracy": part.counts.accuracy,
        "precision": part.counts.precision,
        "recall": part.counts.recall,
        "kappa": part.kappa,
    }


def as_json(calibration: Calibration, file: str, settings: dict[str, Any]) -> dict[str, Any]:
    """file: what was measured on; settings: those of the judge."""
    return {
        "file": file,
        "judge": calibration.judge,
        "settings": settings,
        "cases": calibration.cases,
        "parts": {part.name: _part(part) for part in calibration.parts},
        "cost_per_1000": asdict(calibration.cost),
        "reliability": [asdict(one) for one in calibration.bins],
        "expected_calibration_error": calibration.calibration_error,
        "thresholds": [asdict(one) for one in calibration.thresholds],
        "remarks": [asdict(one) for one in calibration.remarks],
    }


def _part(part: Part) -> dict[str, Any]:
    named = {name: asdict(figure) for name, figure in figures_of(part).items()}
    return {"n": part.counts.total, "counts": asdict(part.counts)} | named
