"""Ray Train hosts an sft phase: TorchTrainer starts the ranks, keeps checkpoints, and starts the
ranks again from the last one when a worker or its machine is lost."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import ray
import ray.train
from ray.train import (
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from veripo_ray import config
from veripo_ray.attempt import Attempt
from veripo_ray.errors import ResourceError, VeripoError
from veripo_ray.sft.demonstrations import load_demonstrations, step_folder, steps_of

RESTARTS = 2  # after lost workers; a VeripoError is the user's to mend and is not tried again
COLLECTIVE_TIMEOUT_S = 1800
METRICS = "metrics.jsonl"
_STOP = "stop"  # a file in the phase's folder, which all ranks can see


@dataclass(frozen=True, slots=True)
class _Job:
    """What every rank is told."""

    run: config.Run
    phase: config.SftPhase
    checkpoint: Path
    output: Path
    attempt: Attempt | None

    def stopping(self) -> bool:
        """Whether a stop was asked for. Raises TakenOver in an attempt that may not write."""
        if self.attempt:
            self.attempt.check()
        return (self.output / _STOP).exists()


def train_sft(
    run: config.Run,
    phase: config.SftPhase,
    start_checkpoint: Path,
    output: Path,
    resume: bool,
    attempt: Attempt | None = None,
) -> Path | None:
    """One sft phase from `start_checkpoint`; returns the folder of the trained checkpoint in
    Hugging Face layout, None when it was asked to stop before. Needs a running Ray and, for
    several nodes, a shared file system.

    output: checkpoints (step-N) and metrics.jsonl, a line a step. With `resume`, goes on from the
    last checkpoint there; without, begins anew and deletes what is there.
    Raises ResourceError when the cluster has not enough CPUs or GPUs, DataError for bad files.
    """
    output = output.absolute()
    if not resume:
        shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    (output / _STOP).unlink(missing_ok=True)
    on_gpu = _on_gpu(run)
    _check_resources(run.learner.ranks, on_gpu)
    phase = _with_lesson(phase, output)
    last = output / step_folder(steps_of(phase, len(load_demonstrations(run.data, phase))))
    if (last / "hf").exists():  # the phase was finished before
        return last / "hf"
    # Of every try to start the ranks; without a limit of tries Ray Train would never give up.
    os.environ[WORKER_GROUP_START_TIMEOUT_S_ENV_VAR] = str(run.placement.deadline_s)
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"job": _Job(run, phase, start_checkpoint.absolute(), output, attempt)},
        torch_config=TorchConfig("nccl" if on_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(num_workers=run.learner.ranks, use_gpu=on_gpu),
        run_config=RunConfig(
            name=output.name,
            storage_path=str(output.parent),
            failure_config=FailureConfig(max_failures=RESTARTS, controller_failure_limit=RESTARTS),
            checkpoint_config=CheckpointConfig(num_to_keep=run.keep_checkpoints),
        ),
    )
    _fit(trainer, run)
    stopped = (output / _STOP).exists() and not (last / "hf").exists()
    return None if stopped else last / "hf"


def ask_to_stop(output: Path) -> None:
    """Let the phase in `output` write a checkpoint after the step in progress, and end."""
    (output / _STOP).touch()


def _fit(trainer: TorchTrainer, run: config.Run) -> None:
    """Run to the end. Our own errors come out of Ray Train's wrapping."""
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
            raise ResourceError(
                f"learner.ranks = {run.learner.ranks}: the cluster had no room for them within "
                f"placement.deadline_s = {run.placement.deadline_s:g}, tried {1 + RESTARTS} times",
                fix="wait for who uses it (`ray status`), add nodes, or raise placement.deadline_s",
            ) from error
        raise _own(error) or error from error


def _own(error: BaseException) -> VeripoError | None:
    """The VeripoError that made a rank fail, if it was one."""
    failures = getattr(error, "worker_failures", {})
    return next((e for e in failures.values() if isinstance(e, VeripoError)), None)


def _on_gpu(run: config.Run) -> bool:
    return run.device == "cuda" or (
        run.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
    )


def _check_resources(ranks: int, on_gpu: bool) -> None:
    """Ray Train would wait for them for ever."""
    kind = "GPU" if on_gpu else "CPU"
    there = ray.cluster_resources().get(kind, 0)
    if there < ranks:
        raise ResourceError(
            f"learner.ranks = {ranks} needs {ranks} {kind}s, the cluster has {there:g}",
            fix=f"lower learner.ranks, or add {kind}s to the cluster",
        )


def _with_lesson(phase: config.SftPhase, output: Path) -> config.SftPhase:
    """The phase with its lesson's demonstrations written into `output`."""
    from veripo_ray.tinyworld.lessons import FILE, write_lesson

    if phase.lesson is None:
        return phase
    lesson, folder = phase.lesson, output / "lesson"
    if not (folder / FILE).exists():
        write_lesson(
            folder,
            lesson.name,
            demonstrations=lesson.demonstrations,
            clips=lesson.clips,
            seed=lesson.seed,
        )
    return phase.model_copy(update={"demonstrations": folder / FILE})


def _rank(settings: dict[str, _Job]) -> None:
    """One rank, in a worker of Ray Train that has joined the process group."""
    from veripo_ray.sft import Student

    job, context = settings["job"], ray.train.get_context()
    questions = load_demonstrations(job.run.data, job.phase)
    with Student(
        job.run,
        job.phase,
        job.checkpoint,
        device=str(get_device()),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
    ) as student:
        last = ray.train.get_checkpoint()
        if last:
            student.learner.load(last.path)
        report = _Report(job.output, context.get_world_rank())
        student.imitate(questions, job.output, report, stop=job.stopping)


@dataclass(frozen=True, slots=True)
class _Report:
    """Logs steps (rank 0), and tells Ray Train of checkpoints, which lie where they stay."""

    output: Path
    rank: int

    def __call__(self, stats: dict[str, float], saved: Path | None) -> None:
        if self.rank == 0:
            with (self.output / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(stats) + "\n")
        if saved:
            ray.train.report(
                stats,
                checkpoint=ray.train.Checkpoint.from_directory(saved) if self.rank == 0 else None,
                checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
            )
