"""Ray Train hosts the sft phase: checkpoints, resumption, errors that come out as themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from actors.sft import METRICS, train_sft
from veripo_ray import config
from veripo_ray.config import Run, SftPhase
from veripo_ray.errors import DataError, ResourceError
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.sft import Student, load_demonstrations
from veripo_ray.tinyworld.lessons import FILE


def settings(phase: SftPhase, **learner: object) -> Run:
    return Run(
        model="unused",
        schedule=(phase,),
        data=config.Data(tinyworld=config.TinyWorldData()),
        video=config.Video(fps=2.0, min_pixels=784),
        prompt=config.Prompt(template="tinyworld"),
        learner=config.Learner(dtype="float32", **learner),
        device="cpu",
    )


def phase(steps: int) -> SftPhase:
    lesson = {"name": "clean", "demonstrations": 24, "clips": 2}
    return SftPhase.model_validate(
        {"lesson": lesson, "batch": 6, "lr": 1e-3, "steps": steps, "final_lr": 1.0}
        | {"checkpoint_every": 2}
    )


def logged(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / METRICS).open()]


@pytest.mark.timeout(200)
def test_two_ranks_train_and_a_resumed_phase_goes_on_from_the_last_checkpoint(
    ray_session: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    two = settings(phase(2), ranks=2)
    first = train_sft(two, phase(2), tiny_checkpoint, tmp_path / "sft", resume=False)
    assert first == tmp_path / "sft" / "step-000002" / "hf"
    last = train_sft(two, phase(3), tiny_checkpoint, tmp_path / "sft", resume=True)
    assert last == tmp_path / "sft" / "step-000003" / "hf"
    assert [row["step"] for row in logged(tmp_path / "sft")] == [1, 2, 3]
    alone: list[float] = []
    with Student(settings(phase(3)), phase(3), tiny_checkpoint) as student:
        chosen = phase(3).model_copy(update={"demonstrations": tmp_path / "sft" / "lesson" / FILE})
        questions = load_demonstrations(student.run.data, chosen)
        student.imitate(questions, tmp_path, lambda stats, _: alone.append(stats["loss"]))
    together = [row["loss"] for row in logged(tmp_path / "sft")]
    assert together == pytest.approx(alone, rel=1e-4)
    assert last == train_sft(two, phase(3), tiny_checkpoint, tmp_path / "sft", resume=True)
    QwenVL.load(last, dtype=torch.float32)


def test_a_bad_file_is_reported_as_itself(
    ray_session: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    chosen = SftPhase(demonstrations=tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"none\.jsonl"):
        train_sft(settings(chosen), chosen, tiny_checkpoint, tmp_path / "sft", resume=False)


def test_more_ranks_than_the_cluster_has_cpus_are_refused_at_once(
    ray_session: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match="ranks = 64 needs 64 CPUs"):
        train_sft(settings(phase(2), ranks=64), phase(2), tiny_checkpoint, tmp_path, resume=False)


def test_ranks_that_find_no_room_are_waited_for_until_the_deadline(
    ray_session: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    taken = placement_group([{"CPU": ray.cluster_resources()["CPU"] - 1}])
    ray.get(taken.ready())
    run = settings(phase(2), ranks=2)
    run = run.model_copy(update={"placement": config.Placement(deadline_s=1.0)})
    try:
        with pytest.raises(ResourceError, match=r"ranks = 2.*no room.*deadline_s = 1"):
            train_sft(run, phase(2), tiny_checkpoint, tmp_path / "sft", resume=False)
    finally:
        remove_placement_group(taken)
