"""One command trains: the whole loop on mp4 files, vLLM, DeepSpeed and the verifier over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veripo_ray import journal
from veripo_ray.progress.written import read_status
from veripo_ray.records import Family
from veripo_ray.report.samples import read_samples
from veripo_ray.tinyworld.world import write_world

pytestmark = pytest.mark.timeout(900)  # whole runs, some of them several
Result = tuple[int, str]
Train = Callable[..., Result]


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def _phases(folder: Path) -> list[str]:
    return [stage["phase"] for stage in _summary(folder)["stages"]]


@pytest.fixture(scope="module")
def broken_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 questions on 100 clips, three of them broken in three ways."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, questions=200, heldout=24, seed=3)
    rows = (folder / "train.jsonl").read_text().splitlines()[::2]  # one question a clip
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    clips = [folder / json.loads(row)["video"] for row in rows]
    clips[10].write_bytes(b"")
    clips[20].write_bytes(clips[20].read_bytes()[: clips[20].stat().st_size // 2])
    _write_audio_only(clips[30])
    return folder


def _write_audio_only(path: Path) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def trained(
    veripo: Train, recipe_file: Path, broken_world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A whole run on the world with three broken clips; its folder and what it printed."""
    output = tmp_path_factory.mktemp("trained") / "run"
    files = [f"data.{part}={broken_world / part}.jsonl" for part in ("train", "heldout")]
    # one batch of all the questions that can be used, so that the broken ones are asked for too
    whole = "{phase: grpo, questions: 97, rollout_batch: 97, train_batch: 97}"
    changes = ["data.tinyworld=null", *files, f"schedule=[{whole},dpo,grpo]"]
    status, said = veripo("train", recipe_file, *changes, "--output", output)
    assert status == 0, said
    return output, said


def test_every_stage_of_the_schedule_is_evaluated(trained: tuple[Path, str]) -> None:
    output, said = trained
    assert _phases(output) == ["initial", "grpo", "dpo", "grpo"]
    summary = _summary(output)
    assert summary["finished"]
    assert all(stage["n"] == 24 for stage in summary["stages"])
    assert summary["seconds_per_sample"]["grpo"] > 0
    assert summary["seconds_per_sample"]["dpo"] > 0
    assert summary["phase_switch_seconds"] > 0
    assert "report" in said


def test_rollouts_and_learner_agree_at_every_stage(trained: tuple[Path, str]) -> None:
    gaps = [stage["logprob_gap_max"] for stage in _summary(trained[0])["stages"]]
    assert all(0 < gap < 1e-4 for gap in gaps)


def test_three_broken_clips_are_named_and_the_run_trains_on_the_others(
    trained: tuple[Path, str],
) -> None:
    summary = _summary(trained[0])
    reasons = " ".join(item["reason"] for item in summary["bad_items"])
    assert len(summary["bad_items"]) == 3
    for number in (10, 20, 30):
        assert f"train-{number:05d}.mp4" in reasons
    asked = {group.question.id for group in journal.read_groups(trained[0])}
    assert len(asked) == 97


def test_every_clip_is_decoded_and_encoded_once(trained: tuple[Path, str]) -> None:
    summary = _summary(trained[0])
    assert summary["decodes"] == summary["encodes"] == summary["videos"] > 100
    assert summary["feature_cache_hits"] == 0


def test_the_next_run_on_the_same_clips_decodes_and_encodes_nothing(
    trained: tuple[Path, str], veripo: Train, tmp_path: Path
) -> None:
    """Its report has films all the same."""
    output = tmp_path / "run"
    status, said = veripo("eval", trained[0] / "config.yaml", "--output", output)
    assert status == 0, said
    summary = _summary(output)
    assert (summary["decodes"], summary["encodes"]) == (0, 0)
    assert summary["feature_cache_hits"] == summary["videos"] > 0
    assert all(sample.frames for sample in read_samples(output))


def test_groups_carry_their_version_and_verdicts_march_with_them(
    trained: tuple[Path, str],
) -> None:
    groups = list(journal.read_groups(trained[0]))
    judged = list(journal.read_judged(trained[0]))
    assert [group.id for group in groups] == [verdict.group_id for verdict in judged]
    versions = [group.rollouts[0].policy_version for group in groups]
    assert versions == sorted(versions)
    assert versions[0] == 0
    assert versions[-1] == 3  # after a sync of grpo, that of dpo, and the next of grpo


def test_pairs_come_from_sampled_rollouts_with_reference_scores(trained: tuple[Path, str]) -> None:
    pairs = list(journal.read_pairs(trained[0]))
    assert pairs
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert {pair.family for pair in pairs} <= set(Family)
    for pair in pairs:
        assert pair.chosen.reference_logprob is not None
        assert pair.rejected.reference_logprob is not None
        assert pair.chosen.verdict.correct


def test_the_report_needs_nothing_but_itself(trained: tuple[Path, str]) -> None:
    page = (trained[0] / "report.html").read_text()
    assert "&lt;think&gt;" in page
    assert 'src="http' not in page
    assert (trained[0] / "metrics.jsonl").read_text().count("\n") == len(
        (trained[0] / "metrics.jsonl").read_text().splitlines()
    )
    assert list((trained[0] / "tensorboard").iterdir())


def test_every_line_of_the_log_says_where_the_run_stood(trained: tuple[Path, str]) -> None:
    lines = [json.loads(line) for line in (trained[0] / "log.jsonl").read_text().splitlines()]
    assert lines[0]["message"] == "the run begins"
    assert lines[-1]["message"] == "the run is finished"
    for line in lines:
        assert {"time", "level", "logger", "run", "iteration", "phase", "version"} <= line.keys()
        assert line["run"] == "run"
    assert [line["version"] for line in lines] == sorted(line["version"] for line in lines)
    steps = [line for line in lines if line["message"].startswith("step")]
    points = [json.loads(p) for p in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["values"] for line in steps] == [point["values"] for point in points]
    assert [line["phase"] for line in steps] == [point["phase"] for point in points]
    stages = [line["stage"]["phase"] for line in lines if "stage" in line]
    assert stages == ["initial", "grpo", "dpo", "grpo"]


def test_the_status_of_a_run_that_ended_is_in_its_folder(
    trained: tuple[Path, str], veripo: Train
) -> None:
    status, said = veripo("status", trained[0], limit_s=60)
    assert status == 0, said
    assert said.count("run: after ") == 4
    assert said.rstrip().endswith("ended")


def test_the_final_checkpoint_gives_the_same_greedy_tokens_in_transformers_and_vllm(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    """Both in processes that know nothing of this project but the files."""
    checkpoint = trained[0] / "checkpoints" / "latest" / "hf"
    script = Path(__file__).parent / "plain_greedy.py"
    tokens = {}
    for library in ("transformers", "vllm"):
        out = tmp_path / library
        subprocess.run(
            ["python", str(script), library, str(checkpoint), str(out)],
            check=True,
            timeout=240,
            env={**os.environ, "PATH": f"{Path(os.sys.executable).parent}:{os.environ['PATH']}"},
        )
        tokens[library] = json.loads(out.read_text())
    assert tokens["transformers"] == tokens["vllm"]
    assert all(len(row) > 3 for row in tokens["vllm"])


def test_sigterm_in_each_phase_then_resume_finishes_with_nothing_twice(
    recipe_file: Path, terminate_when: Train, veripo: Train, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    metrics = output / "metrics.jsonl"

    def reached(phase: str, iteration: int) -> Callable[[], bool]:
        mark = f'"phase":"{phase}","iteration":{iteration},'
        return lambda: metrics.exists() and mark in metrics.read_text()

    cache = f"features.cache_dir={tmp_path / 'cache'}"
    arguments = ("train", recipe_file, cache, "--output", output)
    resume: tuple[str, ...] = ()
    for phase, iteration in (("grpo", 1), ("dpo", 1), ("grpo", 2)):
        status, said = terminate_when(reached(phase, iteration), *arguments, *resume)
        assert status == 128 + signal.SIGTERM, said
        assert "--resume goes on" in said
        resume = ("--resume",)
    status, said = veripo(*arguments, "--resume")
    assert status == 0, said
    assert _phases(output) == ["initial", "grpo", "dpo", "grpo"]
    for records in (journal.read_pairs(output), journal.read_groups(output)):
        ids = [record.id for record in records]
        assert len(ids) == len(set(ids))
        assert ids
    points = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [(p["phase"], p["iteration"], p["step"]) for p in points]
    assert len(steps) == len(set(steps))
    summary, clips = _summary(output), len(list((output / "data").rglob("*.mp4")))
    assert summary["decodes"] <= clips  # over all four starts: none does it again
    assert summary["encodes"] <= clips
    assert summary["feature_cache_hits"] > 0


def test_sigterm_in_a_cold_start_then_resume_goes_on_from_that_step(
    recipe_file: Path, terminate_when: Train, veripo: Train, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    metrics = output / "sft" / "0" / "metrics.jsonl"
    lesson = "lesson: {name: letters, demonstrations: 64, clips: 1}"
    sft = f"schedule=[{{phase: sft, batch: 4, steps: 120, lr: 1.0e-3, {lesson}}}]"
    arguments = ("train", recipe_file, sft, "evaluation.questions=4", "--output", output)
    status, said = terminate_when(metrics.exists, *arguments)
    assert status == 128 + signal.SIGTERM, said
    assert "--resume goes on from step" in said
    stopped_at = len(metrics.read_text().splitlines())
    assert 0 < stopped_at < 120
    told = read_status(output)
    assert told
    assert told.ended
    assert (told.status.phase, told.status.step) == ("sft", stopped_at)
    status, said = veripo(*arguments, "--resume")
    assert status == 0, said
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 121))
    assert _phases(output) == ["initial"]


def test_resuming_with_other_settings_is_refused(
    recipe_file: Path, trained: tuple[Path, str], veripo: Train
) -> None:
    status, said = veripo("train", recipe_file, "--output", trained[0], "--resume", limit_s=90)
    assert status == 2
    assert "schedule, data differ" in said


def test_the_coordinator_outlives_its_driver(
    ray_session: str,
    recipe_file: Path,
    start: Callable[..., subprocess.Popen[str]],
    veripo: Train,
    free_port: Callable[[], int],
    tmp_path: Path,
) -> None:
    """On a cluster that is there, a driver killed outright does not take the run with it; other
    shells and Prometheus see how it goes on."""
    import ray

    output = tmp_path / "orphan"
    address = ray.get_runtime_context().gcs_address
    changes = ["schedule=[grpo]", "grpo.questions=8", f"verifier.port={free_port()}"]
    driver = start("train", recipe_file, *changes, "--output", output, RAY_ADDRESS=address)
    deadline = time.monotonic() + 240
    while not (output / "summary.json").exists() and time.monotonic() < deadline:
        assert driver.poll() is None, driver.stdout and driver.stdout.read()
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait(30)
    status, said = veripo("status", "orphan", "--address", address)  # with nobody but it left
    assert status == 0, said
    assert "orphan: after initial: accuracy" in said
    assert veripo("status", "another", "--address", address)[0] == 2
    wanted = {f"ray_veripo_{name}" for name in ("phase", "rollout_tokens_total", "media")}
    wanted.add("ray_veripo_busy_seconds_total")
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    exporter = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
    while missing := wanted - _exported(exporter, "orphan"):
        assert time.monotonic() < deadline, missing
        time.sleep(1)
    while time.monotonic() < deadline and not _summary(output)["finished"]:
        time.sleep(0.5)
    assert _phases(output) == ["initial", "grpo"]
    shutil.rmtree(output)


def _exported(url: str, run: str) -> set[str]:
    """Names of the metrics that a node exports of a run's work, whichever of its actors did it."""
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    lines = [line for line in text.splitlines() if f'run="{run}"' in line]
    return {line.partition("{")[0] for line in lines}
