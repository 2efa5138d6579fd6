"""A recipe has a plan before anything starts, or is refused with what would fit: by the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray._private.state import actors
from typer.testing import CliRunner

from cluster import here
from veripo_ray import cli
from veripo_ray.errors import ResourceError


def _cluster(nodes: int, gpus: int, memory_gb: int) -> list[str]:
    sizes = {"nodes": nodes, "gpus-per-node": gpus, "gpu-memory": memory_gb}
    return [part for name, size in sizes.items() for part in (f"--{name}", str(size))]


def test_the_plan_as_json_has_every_gpu_bundle_and_part_of_memory() -> None:
    arguments = ["plan", "qwen2_5_vl_7b_16gpu", *_cluster(2, 8, 80), "--json"]
    found = json.loads(CliRunner().invoke(cli.app, arguments).stdout)
    assert len({(gpu["node"], gpu["gpu"]) for gpu in found["gpus"]}) == 16
    assert all(gpu["peak"] <= gpu["memory"] for gpu in found["gpus"])
    learner = found["roles"]["learner"]["memory"]
    assert learner["total"] == pytest.approx(sum(learner.values()) - learner["total"])
    seated = [process for bundle in found["bundles"] for process in bundle["processes"]]
    assert len(seated) == len(set(seated)) == 7 + 8 + 3


def test_the_table_tells_roles_bundles_nodes_and_memory() -> None:
    arguments = ["plan", "qwen2_5_vl_7b_8gpu", *_cluster(1, 8, 80)]
    said = CliRunner().invoke(cli.app, arguments).stdout
    for word in ("weights", "gradients", "optimiser", "KV", "total", "bundles", "node-0 x4"):
        assert word in said
    assert "8 of 8 GPUs" in said
    assert max(map(len, said.splitlines())) <= 80


def test_a_recipe_that_fits_nowhere_near_is_refused_with_changes_that_fit() -> None:
    size = _cluster(1, 8, 40)
    done = CliRunner().invoke(cli.app, ["plan", "qwen2_5_vl_7b_8gpu", *size])
    assert isinstance(done.exception, ResourceError)
    first = done.exception.fix.splitlines()[0].split()
    assert CliRunner().invoke(cli.app, ["plan", "qwen2_5_vl_7b_8gpu", *first, *size]).exit_code == 0


def test_the_command_refuses_on_a_running_cluster_before_any_actor_starts(
    ray_session: str, recipe_file: Path, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    before = set(actors())
    address = ray.get_runtime_context().gcs_address
    for extra in ([], ["--dry-run"]):
        output = tmp_path / "run"
        process = start(
            "train", recipe_file, "rollout.workers=40", "--output", output, *extra,
            RAY_ADDRESS=address,
        )  # fmt: skip
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 2, said
        assert "the run needs 45 CPUs, the cluster has 8" in said
        assert "rollout.workers = 40" in said
        assert "rollout.workers=3" in said  # what fits
        assert not output.exists()
    assert set(actors()) == before


def test_nothing_heavy_is_imported_before_a_refusal(recipe_file: Path) -> None:
    """The promise is 5 seconds, and torch, vLLM and transformers take them to be imported."""
    script = f"""
import sys
sys.argv = ["veripo", "train", {str(recipe_file)!r}, "features.decoders=500", "device=cpu"]
from veripo_ray.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 2, end.code
heavy = {{"torch", "vllm", "transformers", "deepspeed", "fastapi", "pyarrow"}} & set(sys.modules)
assert not heavy, heavy
"""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "features.decoders" in done.stderr


def test_gpus_of_this_machine_are_told_by_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '81559\\n81559\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert here.gpu_memories() == [81559 * 1024**2] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert len(here.gpu_memories()) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert here.gpu_memories() == []
