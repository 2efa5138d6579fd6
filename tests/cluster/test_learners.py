"""Whole runs of other learners: a tower that learns, and adapters over two ranks."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cluster.preflight import model_folder

pytestmark = pytest.mark.timeout(900)  # whole runs, some of them several
Train = Callable[..., tuple[int, str]]


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def _phases(folder: Path) -> list[str]:
    return [stage["phase"] for stage in _summary(folder)["stages"]]


def test_a_tower_that_learns_is_stopped_resumed_and_saved(
    recipe_file: Path, terminate_when: Train, veripo: Train, tmp_path: Path
) -> None:
    """Frames instead of features through grpo, reference and dpo; the log-probability gap after
    each sync says that rollout workers have the learner's tower, before and after the resume."""
    from transformers import AutoModelForImageTextToText

    output = tmp_path / "run"
    metrics = output / "metrics.jsonl"
    vision = ("learner.train_vision=true", "data.tinyworld.heldout=4", "schedule=[grpo,dpo]")
    arguments = ("train", recipe_file, *vision, "--output", output)
    status, said = terminate_when(lambda: metrics.exists() and metrics.read_text(), *arguments)
    assert status == 128 + signal.SIGTERM, said
    status, said = veripo("train", recipe_file, "--output", output, "--resume", *vision[1:])
    assert "learner.train_vision differ" in said
    status, said = veripo(*arguments, "--resume")
    assert status == 0, said
    summary = _summary(output)
    assert _phases(output) == ["initial", "grpo", "dpo"]
    assert all(0 < stage["logprob_gap_max"] < 1e-4 for stage in summary["stages"])
    assert summary["decodes"] >= summary["videos"] > 0  # once before the stop, once after it
    assert summary["encodes"] == 0
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert {step["phase"] for step in steps} == {"grpo", "dpo"}
    assert all(0 < step["values"]["media_seen"] <= 8 for step in steps)  # a group or pair: once
    model, report = AutoModelForImageTextToText.from_pretrained(
        output / "checkpoints" / "latest" / "hf", output_loading_info=True
    )
    assert not report["missing_keys"]
    before = AutoModelForImageTextToText.from_pretrained(model_folder("tinyworld"))
    for name, weight in model.model.visual.named_parameters():
        assert not weight.equal(before.model.visual.get_parameter(name)), name


def test_adapters_are_stopped_in_dpo_resumed_and_saved_merged_and_alone(
    recipe_file: Path, terminate_when: Train, veripo: Train, tmp_path: Path
) -> None:
    """Two ranks that are their own reference; the log-probability gap after each sync says that
    rollout workers have the merged weights, before and after the resume."""
    output = tmp_path / "run"
    metrics = output / "metrics.jsonl"
    small = ("data.tinyworld.heldout=4", "schedule=[grpo,dpo]")
    ranks = ("learner.ranks=2", "learner.zero_stage=3", "grpo.kl_coef=0.1")
    arguments = ("train", recipe_file, *small, *ranks, "--output", output)
    lora = "learner.lora={rank: 8, targets: [q_proj, o_proj, up_proj]}"

    def in_dpo() -> bool:
        return metrics.exists() and '"phase":"dpo"' in metrics.read_text()

    status, said = terminate_when(in_dpo, *arguments, lora)
    assert status == 128 + signal.SIGTERM, said
    status, said = veripo(*arguments, "learner.lora={rank: 4}", "--resume", limit_s=90)
    assert "learner.lora differ" in said
    status, said = veripo(*arguments, lora, "--resume")
    assert status == 0, said
    assert _phases(output) == ["initial", "grpo", "dpo"]
    assert all(0 < stage["logprob_gap_max"] < 1e-4 for stage in _summary(output)["stages"])
    values = [json.loads(line)["values"] for line in metrics.read_text().splitlines()]
    assert values[0]["kl"] == pytest.approx(0, abs=1e-6)  # fresh adapters are the reference
    latest = output / "checkpoints" / "latest"
    own, base = (
        load_file(folder / "model.safetensors")
        for folder in (latest / "hf", model_folder("tinyworld"))
    )
    changed = {name for name, weight in own.items() if not np.array_equal(weight, base[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "o_proj", "up_proj"}
    assert (latest / "adapter" / "adapter_config.json").is_file()
