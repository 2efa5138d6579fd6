"""Everything that can be known to be wrong before the first process starts."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.planning import with_device
from cluster.questions import FOLDER, Questions, pack, unpack
from veripo_ray import attempt as attempts
from veripo_ray import config, tracking
from veripo_ray.errors import ConfigError, DataError, ResourceError
from veripo_ray.features import open_cache
from veripo_ray.models import model_folder
from veripo_ray.policy.pixels import Pixels
from veripo_ray.policy.qwen_vl import read_spec
from veripo_ray.runstate import Checkpoints, read_state
from veripo_ray.verifier import judges
from veripo_ray.verifier.judges import Answered

MIN_FREE_GB = 2.0
CONFIG = "config.yaml"  # the resolved settings, in the folder of every run that has begun


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that passed: its settings with paths resolved, its start checkpoint and questions,
    which are in the run's folder: what is held here does not grow with them."""

    run: config.Run
    checkpoint: Path
    questions: Questions


def has_begun(run: config.Run) -> bool:
    """Whether its folder holds a run that `--resume` can go on with."""
    return (run.output / CONFIG).is_file()


def check_output(run: config.Run, *, resume: bool, overwrite: bool = False) -> None:
    """Neither a run is overwritten by accident nor resumed from nothing."""
    if resume and not has_begun(run):
        raise ConfigError(
            f"--resume: {run.output} holds no run that has begun",
            fix="start it without --resume, or correct --output",
        )
    if resume and (latest := Checkpoints(run.output).latest()):
        read_state(latest)
    there = run.output.iterdir() if run.output.is_dir() else ()
    occupied = any(path.name != attempts.FOLDER for path in there)
    if occupied and not (resume or overwrite):
        raise ConfigError(
            f"output = {run.output} already holds a run",
            fix="--resume goes on with it, --overwrite deletes it, --output FOLDER leaves it alone",
        )


def prepare(run: config.Run, *, resume: bool = False, scratch: Path | None = None) -> Prepared:
    """Check model, data, disk, device and port. Raises the first error it finds.

    The questions go into the run's folder, or into `scratch`; those of a resumed run are there.
    A model on the Hub is fetched last, when all else is well, and not for `scratch`.
    """
    run = resolve(run)
    _check_transport(run)
    checkpoint = model_folder(run.model, weights=False)
    read_spec(checkpoint)
    if run.learner.train_vision:  # learner and rollout workers must make the same pixels of frames
        Pixels.load(checkpoint)
    _check_disk(run.output)
    open_cache(run.features)
    _check_judges(run)
    tracking.check(run.tracking.wandb)
    if not os.environ.get("RAY_ADDRESS"):  # a cluster's Serve may have it already, for all runs
        _check_port(run.verifier)
    if resume:
        return Prepared(run, model_folder(run.model), unpack(run.output))
    with _taken_back(scratch or run.output) as output:
        questions = pack(run, output)
        _check_enough(run, questions)
        if scratch is None:
            checkpoint = model_folder(run.model)
    return Prepared(run, checkpoint, questions)


@contextmanager
def _taken_back(output: Path) -> Iterator[Path]:
    """Checks that fail leave nothing in the output, so that the next try finds it as they did."""
    made = [path for path in (output, output / FOLDER, output / "data") if not path.exists()]
    try:
        yield output
    except BaseException:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)
        raise


def _check_transport(run: config.Run) -> None:
    if problems := config.transport_problems(run):
        raise ConfigError(problems[0], fix="weights.transport=auto")


def resolve(run: config.Run) -> config.Run:
    """Absolute paths (actors have other working folders) and the device that is there."""
    device = with_device(run).device
    data = run.data
    paths = {
        name: path.expanduser().absolute()
        for name in ("train", "heldout", "video_root")
        if (path := getattr(data, name)) is not None
    }
    cache = run.features.cache_dir  # None stays: each machine has a home of its own
    return run.model_copy(
        update={
            "output": run.output.expanduser().absolute(),
            "device": device,
            "data": data.model_copy(update=paths),
            "features": run.features.model_copy(
                update={"cache_dir": cache and cache.expanduser().absolute()}
            ),
        }
    )


def _check_disk(output: Path) -> None:
    existing = next(p for p in (output, *output.parents) if p.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    if free_gb < MIN_FREE_GB:
        raise ResourceError(
            f"output = {output}: {free_gb:.1f} GB free on its disk, {MIN_FREE_GB:g} GB needed",
            fix="free some room, or put --output on another disk",
        )


def _check_judges(run: config.Run) -> None:
    """A prompt, an address or a key that cannot be used shows here, not in a replica."""

    async def nobody(prompts: Sequence[str]) -> list[Answered | str]:
        raise NotImplementedError(len(prompts))

    for name in run.judges:
        judges.build(name, run.verifier.judges, nobody)


def _check_port(verifier: config.Verifier) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((verifier.host, verifier.port))
        except OSError as error:
            raise ResourceError(
                f"verifier.port = {verifier.port} on {verifier.host} cannot be opened: "
                f"{error.strerror}",
                fix=f"end what uses it, or choose another: verifier.port={verifier.port + 1}",
            ) from error


def _check_enough(run: config.Run, questions: Questions) -> None:
    if not len(questions.heldout):
        raise DataError("data.heldout has no usable question", fix="give at least one")
    usable = len(questions.train)
    for index, phase in enumerate(run.schedule):
        needed = phase.rollout_batch if phase.phase == "grpo" else 0
        if usable < needed:
            raise DataError(
                f"data.train has {usable} usable questions, fewer than "
                f"schedule.{index}.rollout_batch = {needed}",
                fix=f"give more questions, or lower it: grpo.rollout_batch={usable}",
            )
