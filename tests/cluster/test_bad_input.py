"""What is wrong is said on one screen, with its cause and its fix, before anything starts."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster import preflight
from veripo_ray import cli
from veripo_ray.errors import VeripoError


def _refusal(*arguments: str | Path) -> str:
    """What `veripo train` says, in this process: nothing is started."""
    result = CliRunner().invoke(cli.app, ["train", *map(str, arguments)])
    assert isinstance(result.exception, VeripoError), result.output
    said = str(result.exception)
    assert "fix: " in said
    assert len(said.splitlines()) <= 20
    return said


def test_the_command_prints_the_error_without_a_traceback_and_exits_2(
    recipe_file: Path, veripo: Callable[..., tuple[int, str]]
) -> None:
    status, output = veripo("train", recipe_file, "rolout.workers=2", limit_s=60)
    assert status == 2
    assert "rolout: unknown setting; did you mean rollout?" in output
    assert "Traceback" not in output


def test_a_batch_that_does_not_divide(recipe_file: Path) -> None:
    said = _refusal(recipe_file, "grpo.train_batch=3")
    assert "rollout_batch = 8 is not a multiple of train_batch = 3; make it 9" in said


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["weights.transport=nccl"], "nccl goes from GPU to GPU, and device = cpu"),
        (["weights.transport=cuda_ipc", "device=cpu"], "goes from GPU to GPU, and device = cpu"),
        (["weights.transport=cuda_ipc", "device=cuda"], "and placement.layout = separate"),
        (
            ["weights.transport=nccl", "device=cuda", "placement.layout=colocated"],
            "needs a GPU a process, and placement.layout = colocated",
        ),
    ],
)
def test_a_transport_of_weights_that_cannot_work_here(
    settings: list[str], why: str, recipe_file: Path, tmp_path: Path
) -> None:
    """Without a device the first is known only here, where there is no GPU."""
    assert why in _refusal(recipe_file, *settings, "--output", tmp_path / "run")


def test_a_missing_data_file(recipe_file: Path, tmp_path: Path) -> None:
    files = ["data.tinyworld=null", f"data.train={tmp_path}/no.jsonl", f"data.heldout={tmp_path}/n"]
    assert f"{tmp_path}/no.jsonl" in _refusal(recipe_file, *files, "--output", tmp_path / "run")


def test_a_missing_model(recipe_file: Path, tmp_path: Path) -> None:
    said = _refusal(recipe_file, f"model={tmp_path}/gone", "--output", tmp_path / "run")
    assert f"{tmp_path}/gone" in said


def test_a_checkpoint_of_an_unsupported_family(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    said = _refusal(recipe_file, f"model={tmp_path}", "--output", tmp_path / "run")
    assert "family 'llama'" in said
    assert "qwen2_5_vl" in said


def test_processors_that_a_tower_could_not_learn_with(recipe_file: Path, tmp_path: Path) -> None:
    """vLLM normalises videos as images, so the learner would see other pixels."""
    shipped = preflight.model_folder("tinyworld")
    model = shutil.copytree(shipped, tmp_path / "model")
    path = model / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["video_processor"]["image_mean"] = [0.5, 0.5, 0.5]
    path.write_text(json.dumps(settings))
    changes = [f"model={model}", "learner.train_vision=true", "--output", tmp_path / "run"]
    assert "normalises videos by (mean, std) = ([0.5, 0.5, 0.5]" in _refusal(recipe_file, *changes)
    path.unlink()
    assert "does not say how its tower wants pixels" in _refusal(recipe_file, *changes)


def test_a_port_in_use(recipe_file: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = _refusal(recipe_file, f"verifier.port={port}", "--output", tmp_path / "run")
    assert f"verifier.port = {port}" in said
    assert f"verifier.port={port + 1}" in said


def test_a_folder_that_holds_a_run_is_not_overwritten_by_accident(
    recipe_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").touch()
    said = _refusal(recipe_file, "--output", tmp_path)
    assert "--resume" in said
    assert "--overwrite" in said
    assert "does not look like a run" in _refusal(recipe_file, "--output", tmp_path, "--overwrite")
    assert (tmp_path / "metrics.jsonl").exists()


def test_resuming_from_nothing(recipe_file: Path, tmp_path: Path) -> None:
    assert "holds no run that has begun" in _refusal(recipe_file, "--output", tmp_path, "--resume")


def test_fewer_questions_than_a_batch(recipe_file: Path, tmp_path: Path) -> None:
    said = _refusal(recipe_file, "data.tinyworld.train=4", "--output", tmp_path / "run")
    assert "4 usable questions, fewer than schedule.0.rollout_batch = 8" in said
    assert not (tmp_path / "run").exists()  # so that the next try is not refused


def test_a_feature_cache_that_cannot_be_written(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = _refusal(
        recipe_file, f"features.cache_dir={tmp_path}/file", "--output", tmp_path / "run"
    )
    assert f"features.cache_dir = {tmp_path}/file cannot be written" in said
    assert "features.cache_gb=0" in said


@pytest.mark.parametrize("recipe", ["quickstart"])
def test_a_dry_run_checks_everything_and_starts_nothing(
    recipe: str, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = f"verifier.port={free_port()}"
    output = tmp_path / "run"
    arguments = ["train", recipe, port, "data.tinyworld.train=32", "data.tinyworld.heldout=4"]
    result = CliRunner().invoke(cli.app, [*arguments, "--dry-run", "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert "every check passed; nothing was started" in result.output
    assert "32 questions to train on, 4 held out" in result.output
    assert not output.exists()


def test_a_judge_that_cannot_be_asked(recipe_file: Path, tmp_path: Path) -> None:
    judge = ["evaluation.judge=openai", "verifier.judges.openai.model=m"]
    elsewhere = [*judge, "verifier.judges.openai.url=elsewhere", "--output", tmp_path / "run"]
    assert "judges.openai.url = 'elsewhere'" in _refusal(recipe_file, *elsewhere)
    prompt = [
        "verifier.judges.openai.url=http://localhost:1",
        "verifier.judges.openai.prompt=absent",
    ]
    said = _refusal(recipe_file, *judge, *prompt, "--output", tmp_path / "run")
    assert "the judge's prompt 'absent'" in said
