"""Everything that can be known to be wrong before the first process starts."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from veripo_ray import config
from veripo_ray.errors import ConfigError, DataError, ResourceError
from veripo_ray.policy.qwen_vl import read_spec
from veripo_ray.questions import load_questions
from veripo_ray.records import Question
from veripo_ray.runlog import BadItem
from veripo_ray.runstate import Checkpoints, read_state

MIN_FREE_GB = 2.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that passed: its settings with paths resolved, its start checkpoint and questions."""

    run: config.Run
    checkpoint: Path
    train: tuple[Question, ...]
    heldout: tuple[Question, ...]
    bad: tuple[BadItem, ...]


def check_output(run: config.Run, *, resume: bool, overwrite: bool = False) -> None:
    """Neither a run is overwritten by accident nor resumed from nothing."""
    latest = Checkpoints(run.output).latest()
    if resume and not latest:
        raise ConfigError(
            f"--resume: {run.output} has no checkpoint",
            fix="start it without --resume, or correct --output",
        )
    if resume and latest:
        read_state(latest)
    occupied = run.output.is_dir() and any(run.output.iterdir())
    if occupied and not (resume or overwrite):
        raise ConfigError(
            f"output = {run.output} already holds a run",
            fix="--resume goes on with it, --overwrite deletes it, --output FOLDER leaves it alone",
        )


def prepare(run: config.Run) -> Prepared:
    """Check model, data, disk, device and port. Raises the first error it finds."""
    run = resolve(run)
    checkpoint = model_folder(run.model)
    read_spec(checkpoint)
    _check_disk(run.output)
    _check_port(run.verifier)
    train, bad_train = _load(run, "train")
    heldout, bad_heldout = _load(run, "heldout")
    _check_enough(run, train, heldout)
    return Prepared(run, checkpoint, tuple(train), tuple(heldout), (*bad_train, *bad_heldout))


def resolve(run: config.Run) -> config.Run:
    """Absolute paths (actors have other working folders) and the device that is there."""
    device = run.device if run.device != "auto" else _device()
    data = run.data
    paths = {
        name: path.expanduser().absolute()
        for name in ("train", "heldout", "video_root")
        if (path := getattr(data, name)) is not None
    }
    return run.model_copy(
        update={
            "output": run.output.expanduser().absolute(),
            "device": device,
            "data": data.model_copy(update=paths),
        }
    )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def model_folder(model: str) -> Path:
    """The checkpoint's folder; 'tinyworld' is the one that ships with the package."""
    if model == "tinyworld":
        return Path(str(resources.files("veripo_ray") / "tinyworld" / "checkpoint"))
    return Path(model).expanduser().absolute()


def _check_disk(output: Path) -> None:
    existing = next(p for p in (output, *output.parents) if p.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    if free_gb < MIN_FREE_GB:
        raise ResourceError(
            f"output = {output}: {free_gb:.1f} GB free on its disk, {MIN_FREE_GB:g} GB needed",
            fix="free some room, or put --output on another disk",
        )


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


def _load(run: config.Run, part: str) -> tuple[list[Question], list[BadItem]]:
    """Questions of one file, those unusable listed; those of the tiny world are written first."""
    path = getattr(run.data, part)
    if run.data.tinyworld:
        path = tiny_world(run) / f"{part}.jsonl"
    questions, bad = load_questions(path, run.data.format, run.data.video_root)
    return questions, [BadItem(name=item.id or item.where, reason=item.reason) for item in bad]


def tiny_world(run: config.Run) -> Path:
    """The folder of the run's tiny world, written on first use."""
    from veripo_ray.tinyworld.world import write_world

    world, folder = run.data.tinyworld, run.output / "data"
    assert world is not None
    if not (folder / "heldout.jsonl").exists():
        write_world(folder, questions=world.train, heldout=world.heldout, seed=world.seed)
    return folder


def check_resources(run: config.Run, available: Mapping[str, float]) -> None:
    """What the actors ask for at once must fit the cluster: a process that never starts tells
    nobody why. `available`: what Ray says the cluster has."""
    actors = 2 + run.rollout.workers + run.learner.ranks  # encoder and reference are one each
    needs = {"CPU": float(actors + run.verifier.replicas)}
    if run.device == "cuda":
        needs["GPU"] = float(
            2 + run.rollout.workers * run.rollout.tensor_parallel + run.learner.ranks
        )
    for kind, needed in needs.items():
        if available.get(kind, 0.0) < needed:
            raise ResourceError(
                f"the run needs {needed:g} {kind}s, the cluster has {available.get(kind, 0.0):g}: "
                f"encoder 1, reference 1, rollout.workers = {run.rollout.workers}, "
                f"rollout.tensor_parallel = {run.rollout.tensor_parallel}, "
                f"learner.ranks = {run.learner.ranks}, "
                f"verifier.replicas = {run.verifier.replicas}",
                fix="add nodes, or lower these settings",
            )


def _check_enough(run: config.Run, train: Sequence[Question], heldout: Sequence[Question]) -> None:
    if not heldout:
        raise DataError("data.heldout has no usable question", fix="give at least one")
    for index, phase in enumerate(run.schedule):
        needed = phase.rollout_batch if phase.phase == "grpo" else 0
        if len(train) < needed:
            raise DataError(
                f"data.train has {len(train)} usable questions, fewer than "
                f"schedule.{index}.rollout_batch = {needed}",
                fix=f"give more questions, or lower it: grpo.rollout_batch={len(train)}",
            )
