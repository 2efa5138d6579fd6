"""Starts a run on a cluster (or a private one of this machine), follows it, tells how it ended."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from actors.calls import result_now
from actors.coordinator import Coordinator
from actors.machines import cluster_now
from actors.team import Team
from cluster import preflight
from cluster.cold_start import cold_start
from cluster.preflight import CONFIG, Prepared
from cluster.stopping import Stop
from deployments import verifier
from veripo_ray import config, recipe
from veripo_ray.errors import ConfigError, ResourceError
from veripo_ray.placement import plan
from veripo_ray.progress import Progress
from veripo_ray.runlog import read_summary

NAMESPACE = "veripo"
POLL_S = 0.5
# Logical CPUs of a private cluster: actors take turns, so a laptop's two cores carry them all.
LOCAL_CPUS = 16
LOCAL_STORE_BYTES = 1 << 30
_SAME = ("model", "seed", "schedule", "data", "video", "prompt", "learner.train_vision")
SHOWN_BAD = 10


def train(run: config.Run, *, resume: bool, overwrite: bool, dry_run: bool) -> int:
    """The whole of `veripo train`. Returns the exit status: 0 finished, 128 + signal stopped."""
    if dry_run:
        return _only_check(run, resume=resume)
    preflight.check_output(run, resume=resume, overwrite=overwrite)
    _make_room(run.output, resume=resume, overwrite=overwrite)
    if resume:
        _check_same_run(run)
    prepared = preflight.prepare(run, resume=resume)
    _print_plan(prepared)
    Console(highlight=False).print("starting Ray and the verifier: about 20 seconds")
    return follow_to_the_end(prepared, resume=resume)


def _only_check(run: config.Run, *, resume: bool) -> int:
    """`--dry-run`: nothing is started, and nothing is left in the output."""
    if resume:
        _check_same_run(run)
    with tempfile.TemporaryDirectory() as scratch:
        _print_plan(preflight.prepare(run, resume=resume, scratch=Path(scratch)))
    Console(highlight=False).print("every check passed; nothing was started")
    return 0


def evaluate(run: config.Run, output: Path | None) -> int:
    """`veripo eval`: the stage 'initial' of a run without phases."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = output or Path(scratch) / "eval"
        preflight.check_output(run.model_copy(update={"output": folder}), resume=False)
        settings = {"schedule": (), "output": folder}
        return follow_to_the_end(preflight.prepare(run.model_copy(update=settings)), resume=False)


def _make_room(output: Path, *, resume: bool, overwrite: bool) -> None:
    if not overwrite or resume or not output.exists():
        return
    if not (output / CONFIG).exists():
        raise ConfigError(
            f"--overwrite: {output} does not look like a run's folder (no {CONFIG})",
            fix="delete it yourself, or give another --output",
        )
    shutil.rmtree(output)


def _check_same_run(run: config.Run) -> None:
    """What a resumed run must share with its beginning."""
    before = recipe.load(run.output / CONFIG)
    now = preflight.resolve(run)
    changed = [name for name in _SAME if attrgetter(name)(before) != attrgetter(name)(now)]
    if changed:
        raise ConfigError(
            f"--resume: {', '.join(changed)} differ from {run.output / CONFIG}",
            fix="resume with the settings the run began with, or start a new one elsewhere",
        )


def follow_to_the_end(prepared: Prepared, *, resume: bool, team: type[Team] = Team) -> int:
    """Start what the run needs, show its progress until it ends; the exit status. `team`: other
    actors than the product's, for a measurement of what leads them."""
    run = prepared.run
    (run.output / CONFIG).write_text(recipe.dump(run))  # from here on `--resume` goes on with it
    with _cluster(run.device), Stop() as stop:
        plan(run, cluster_now())  # refuses what does not fit
        checkpoint = cold_start(prepared, resume=resume, stop=stop)
        if checkpoint is None:
            return 128 + stop.signal
        with _verifier(run, checkpoint) as url:
            prepared = replace(prepared, checkpoint=checkpoint)
            coordinator = _launch(prepared, url, team, resume=resume)
            try:
                ending = coordinator.run.remote()
                verifier.wait(url)  # its replicas start while the run's actors do
                return _follow(coordinator, ending, run, checkpoint, stop)
            finally:
                ray.kill(coordinator)


def _follow(coordinator: Any, ending: Any, run: config.Run, begun_from: Path, stop: Stop) -> int:
    """Show the run's progress until `ending`, the result of the coordinator's `run`, is there."""
    told = False
    with Progress() as progress:
        while not ray.wait([ending], timeout=POLL_S)[0]:
            progress.update(result_now(coordinator.status.remote()))
            if stop.signal and not told:
                result_now(coordinator.stop.remote())
                told = True
        outcome = result_now(ending)
        _print_ending(progress, run, outcome, begun_from)
    return 0 if outcome == "finished" else 128 + stop.signal


@contextmanager
def _cluster(device: str) -> Iterator[None]:
    """The cluster of RAY_ADDRESS (`ray job submit` sets it), or a private one for this run."""
    if os.environ.get("RAY_ADDRESS"):
        ray.init(namespace=NAMESPACE, log_to_driver=False)
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # private and on loopback
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            namespace=NAMESPACE,
            num_cpus=max(LOCAL_CPUS, os.cpu_count() or 1),
            object_store_memory=LOCAL_STORE_BYTES if device == "cpu" else None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _verifier(run: config.Run, checkpoint: Path) -> Iterator[str]:
    url = verifier.start(run.verifier, str(checkpoint), run.heldout_judge)
    try:
        yield url
    finally:
        verifier.stop()


def _launch(prepared: Prepared, url: str, team: type[Team], *, resume: bool) -> Any:
    """The coordinator: named, so that others find it; detached, so that it outlives its driver."""
    name = f"coordinator-{prepared.run.output.name}"
    actor = ray.remote(Coordinator).options(name=name, lifetime="detached", num_cpus=0)
    try:
        return actor.remote(
            prepared.run,
            checkpoint=prepared.checkpoint,
            train=prepared.questions.train,
            heldout=prepared.questions.heldout,
            left_out=prepared.questions.left_out,
            verifier_url=url,
            resume=resume,
            cleanup=verifier.stop,
            team=team,
        )
    except ValueError as error:  # the name is taken
        raise ResourceError(
            f"a run named {prepared.run.output.name!r} goes on in this cluster already",
            fix="wait for it, or give another --output",
        ) from error


def _print_ending(progress: Progress, run: config.Run, outcome: str, begun_from: Path) -> None:
    summary = read_summary(run.output)
    assert summary is not None  # the coordinator writes it before it returns
    report = run.output / "report.html"
    trained = begun_from if run.cold_start else None
    if summary.checkpoint:
        trained = run.output / "checkpoints" / "latest" / "hf"
    note = "" if outcome == "finished" else "stopped; --resume goes on from the checkpoint"
    progress.finish(
        summary.stages,
        report=report if report.exists() else None,
        checkpoint=trained,
        note=note,
    )


def _print_plan(prepared: Prepared) -> None:
    run, questions = prepared.run, prepared.questions
    console = Console(highlight=False)
    trained, held_out = len(questions.train), len(questions.heldout)
    console.print(f"{trained} questions to train on, {held_out} held out")
    if questions.left_out.count:
        console.print(f"left out:\n{questions.left_out.told(SHOWN_BAD)}", markup=False)
    phases = ", ".join(phase.phase for phase in run.schedule)
    console.print(f"model {run.model} on {run.device}: {phases}; output {run.output}")
