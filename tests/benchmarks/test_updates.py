"""The benchmarks of learner updates compare like with like, and write the figures promised."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    """`scripts("learner")`: a benchmark as a module; they import each other from their folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module


@pytest.fixture(scope="module")
def checkpoint(scripts, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("trunk")
    return str(scripts("_trunk").write_checkpoint(folder, "tiny", torch.float32, "cpu"))


@pytest.mark.parametrize("tokens", [None, 60])
@pytest.mark.parametrize(("script", "responses"), [("learner", 4), ("dpo", 2)])
def test_all_sides_compute_the_same_update(scripts, checkpoint, script, responses, tokens):
    pytest.importorskip("trl")
    pytest.importorskip("openrlhf")
    sides, benchmark = scripts("_sides"), scripts(script)
    sides.forget_models()  # TRL's two trainers want different heads on it
    shape = sides.Shape(24, 6, responses)
    setting = sides.Setting(checkpoint, shape, "cpu", "float32", tokens)
    built = {name: build(setting) for name, build in benchmark.SIDES.items()}
    assert scripts("_updates").agreement(built, 1e-4) > 0
    found = {name: loss_and_norm(side) for name, side in built.items()}
    for name, values in found.items():
        assert values == pytest.approx(found["ours"], rel=1e-4), name


def loss_and_norm(side) -> tuple[float, float]:
    """Of a whole update, before its step."""
    side.optimizer.zero_grad()
    total = 0.0
    for loss in side.losses():
        loss.backward()
        total += loss.item()
    gradients = [p.grad for p in side.model.parameters() if p.grad is not None]
    return total, float(torch.stack([gradient.norm() for gradient in gradients]).norm())


def test_a_run_prints_and_writes_a_row_a_shape(tmp_path):
    file = tmp_path / "out.json"
    command = [
        *(sys.executable, BENCHMARKS / "learner.py", "--trunk", "tiny", "--repeats", "2"),
        *("--shapes", "48,8,4", "--skip", "trl", "openrlhf", "--json", file),
    ]
    printed = subprocess.run(command, check=True, timeout=280, capture_output=True, text=True)
    result = json.loads(file.read_text())
    assert result.keys() >= {"benchmark", "date", "device", "rows", "trunk", "absent"}
    (row,) = result["rows"]
    assert (row["P"], row["R"], row["G"]) == (48, 8, 4)
    for figures in ("seconds", "cpu_seconds", "peak_mb"):
        assert row[figures].keys() == {"ours", "repeated"}
        assert min(row[figures].values()) > 0
    assert row["limit"] == pytest.approx(4 * 56 / 80)
    assert row["over_limit"] == pytest.approx(row["ratio"]["repeated"] / 2.8, abs=1e-3)
    assert row["rounds"] == {"ours": 2, "repeated": 2}
    assert "of limit" in printed.stdout


def test_sides_that_disagree_are_not_timed(scripts):
    class Side:
        def __init__(self, shift: float) -> None:
            self.shift = shift

        def logprobs(self) -> torch.Tensor:
            return torch.full((2, 3), -1.0 + self.shift)

    agreement = scripts("_updates").agreement
    assert agreement({"ours": Side(0), "trl": Side(1e-5)}, 1e-4) == pytest.approx(1e-5, rel=0.1)
    for wrong in (1e-3, float("nan")):
        with pytest.raises(SystemExit, match="trl finds"):
            agreement({"ours": Side(0), "trl": Side(wrong)}, 1e-4)
