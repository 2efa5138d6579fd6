"""Starts a run on a cluster (or a private one of this machine), follows it, tells how it ended."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from actors.calls import result_now
from actors.coordinator import Coordinator
from actors.machines import cluster_now
from actors.team import Team
from cluster import job, kept, preflight
from cluster.cold_start import cold_start
from cluster.here import LOCAL_CPUS
from cluster.planning import NAMESPACE, connect
from cluster.preflight import CONFIG, Prepared
from cluster.stopping import Stop, StoppedAtOnce
from deployments import verifier
from deployments.env import PROXY_ENV
from veripo_ray import attempt as attempts
from veripo_ray import config, recipe
from veripo_ray.attempt import Attempt
from veripo_ray.errors import ConfigError, ResourceError, StorageError, TakenOver
from veripo_ray.placement import plan
from veripo_ray.progress import Progress
from veripo_ray.runlog import read_summary
from veripo_ray.runstate import Checkpoints

POLL_S = 0.5
LOCAL_STORE_BYTES = 1 << 30
_SAME = (
    *("model", "seed", "schedule", "data", "video", "prompt"),
    *("learner.train_vision", "learner.lora"),
)
SHOWN_BAD = 10
RETIRE_S = 600.0  # how long an attempt that goes on waits for the checkpoint of the one before
RELEASE_S = 30.0  # how long Ray may take to give an actor's name free


def train(run: config.Run, *, resume: bool, overwrite: bool, dry_run: bool) -> int:
    """The whole of `veripo train`. Returns the exit status: 0 finished, 128 + signal stopped."""
    run = job.place(run)
    with Stop() as stop, _told_how_it_ended(run, stop):
        kept.check(run, resume=resume, overwrite=overwrite)
        if dry_run:
            return _only_check(run, resume=resume)
        kept.arrive(run, resume=resume, overwrite=overwrite)
        preflight.check_output(run, resume=resume, overwrite=overwrite)
        if overwrite and ray.is_initialized():
            _refuse_beside(_earlier(run), run)
        _make_room(run.output, resume=resume, overwrite=overwrite)
        if resume:
            _check_same_run(run)
        prepared = preflight.prepare(run, resume=resume)
        _print_plan(prepared)
        Console(highlight=False).print("starting Ray and the verifier: about 20 seconds")
        return follow_to_the_end(prepared, resume=resume, stop=stop)


@contextmanager
def _told_how_it_ended(run: config.Run, stop: Stop) -> Iterator[None]:
    """Whatever ends the run early, its log says what there is to go on from; an error itself is
    for the command to print, after this."""
    try:
        yield
    except StoppedAtOnce:
        _say(f"stopped at once by {stop.name}; {_to_go_on_from(run)}")
        raise
    except TakenOver:
        raise
    except Exception:
        if stop.patient:
            _say(f"failed; {_to_go_on_from(run)}")
        raise


def _to_go_on_from(run: config.Run) -> str:
    try:
        latest = kept.newest(run) if run.storage else Checkpoints(run.output).latest()
    except StorageError:
        return f"--resume goes on from the last whole checkpoint at {run.storage}"
    if latest is None:
        return "there is no checkpoint yet"
    return f"--resume goes on from checkpoint {latest}"


def _say(line: str) -> None:
    Console(highlight=False).print(line, soft_wrap=True, markup=False)


def _only_check(run: config.Run, *, resume: bool) -> int:
    """`--dry-run`: nothing is started, and nothing is left in the output."""
    if resume:
        kept.arrive(run, resume=True, overwrite=False)
        _check_same_run(run)
    with tempfile.TemporaryDirectory() as scratch:
        _print_plan(preflight.prepare(run, resume=resume, scratch=Path(scratch)))
    Console(highlight=False).print("every check passed; nothing was started")
    return 0


def evaluate(run: config.Run, output: Path | None) -> int:
    """`veripo eval`: the stage 'initial' of a run without phases, kept in a local folder."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = job.lasting(output) if output else Path(scratch) / "eval"
        preflight.check_output(run.model_copy(update={"output": folder}), resume=False)
        settings = {"schedule": (), "output": folder, "storage": None}
        prepared = preflight.prepare(run.model_copy(update=settings))
        with Stop() as stop:
            return follow_to_the_end(prepared, resume=False, stop=stop)


def _make_room(output: Path, *, resume: bool, overwrite: bool) -> None:
    if not overwrite or resume or not output.exists():
        return
    # attempts stay: one that still writes must know that it is old
    there = [path for path in output.iterdir() if path.name != attempts.FOLDER]
    if there and not (output / CONFIG).exists():
        raise ConfigError(
            f"--overwrite: {output} does not look like a run's folder (no {CONFIG})",
            fix="delete it yourself, or give another --output",
        )
    for path in there:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check_same_run(run: config.Run) -> None:
    """What a resumed run must share with its beginning."""
    before = recipe.load(run.output / CONFIG)
    now = preflight.resolve(run)
    changed = [
        name
        for name in _SAME
        if job.same_anywhere(attrgetter(name)(before)) != job.same_anywhere(attrgetter(name)(now))
    ]
    if changed:
        raise ConfigError(
            f"--resume: {', '.join(changed)} differ from {run.output / CONFIG}",
            fix="resume with the settings the run began with, or start a new one elsewhere",
        )
    if now.storage and now.data.tinyworld and now.output != before.output:
        raise ConfigError(  # questions, also those in the journals, name their clips by path
            f"--resume: the clips of the tiny world were in {before.output}, where this machine "
            f"does not put them: here the output would be {now.output}",
            fix=f"give the same folder: storage={now.storage} output={before.output}",
        )


def follow_to_the_end(
    prepared: Prepared, *, resume: bool, stop: Stop | None = None, team: type[Team] = Team
) -> int:
    """Start what the run needs, show its progress until it ends; the exit status. `team`: other
    actors than the product's, for a measurement of what leads them."""
    run, stop = prepared.run, stop or Stop()
    if not resume:
        _write_config(run)  # from here on `--resume` goes on with it
    with _cluster(run.device), stop:  # Ray has put its own handlers in the place of those before
        plan(run, cluster_now())  # refuses what does not fit
        _make_way(run, resume=resume)
        attempt = kept.begin(run, resume=resume)
        if resume:
            _write_config(run)
        checkpoint = cold_start(prepared, attempt, resume=resume, stop=stop)
        if checkpoint is None:
            return stop.status
        kept.keep_cold_start(run)
        prepared, url = replace(prepared, checkpoint=checkpoint), verifier.address(run.verifier)
        coordinator = _launch(prepared, url, team, attempt, resume=resume)
        try:  # all three start side by side: coordinator, Serve, and the actors of the run
            verifier.start(run.verifier, str(checkpoint), run.heldout_judge)
            ending = coordinator.run.remote()
            verifier.wait(url)
            stop.patient = True  # from here on there is something to save
            return _follow(coordinator, ending, run, checkpoint, stop)
        finally:
            ray.kill(coordinator)  # first: an unanswered question is an error in its journal
            verifier.stop()


def _make_way(run: config.Run, *, resume: bool) -> None:
    """An attempt that is still at work here ends with a checkpoint, and this one goes on from it.
    One that does not come to an end is ended: its last checkpoint stands."""
    earlier = _earlier(run)
    if not resume:
        _refuse_beside(earlier, run)
    if earlier is None:
        return
    _say("an earlier attempt at this run is still at work; waiting for its checkpoint")
    if not ray.wait([earlier.retire.remote()], timeout=RETIRE_S)[0]:
        _say(f"it did not stop within {RETIRE_S:g} s and is ended; {_to_go_on_from(run)}")
    ray.kill(earlier)


def _earlier(run: config.Run) -> Any | None:
    """The coordinator of an attempt at this run that goes on in the cluster."""
    try:
        return ray.get_actor(_name(run))
    except ValueError:
        return None


def _refuse_beside(earlier: Any | None, run: config.Run) -> None:
    """Before anything of its folder is deleted."""
    if earlier is not None:
        raise ResourceError(
            f"a run with the output {run.output} goes on in this cluster already",
            fix="wait for it, take over with --resume, or give another --output",
        )


def _write_config(run: config.Run) -> None:
    (run.output / CONFIG).write_text(recipe.dump(run))


def _follow(coordinator: Any, ending: Any, run: config.Run, begun_from: Path, stop: Stop) -> int:
    """Show the run's progress until `ending`, the result of the coordinator's `run`, is there."""
    told = False
    with Progress() as progress:
        while not ray.wait([ending], timeout=POLL_S)[0]:
            if stop.signal and not told:
                result_now(coordinator.stop.remote())
                progress.say(
                    f"{stop.name}: stops after this step, with a checkpoint; --resume goes on then"
                )
                told = True
            progress.update(result_now(coordinator.status.remote()))
        outcome = result_now(ending)
        _print_ending(progress, run, begun_from, _verdict(outcome, run, stop))
    return 0 if outcome == "finished" else stop.status


def _verdict(outcome: str, run: config.Run, stop: Stop) -> str:
    """The last line of the log."""
    if outcome == "finished":
        return f"finished: {run.storage or run.output}"
    return f"stopped by {stop.name}; {_to_go_on_from(run)}"


@contextmanager
def _cluster(device: str) -> Iterator[None]:
    """The cluster of RAY_ADDRESS (`ray job submit` sets it), or a private one for this run."""
    if os.environ.get("RAY_ADDRESS"):
        connect()
    else:
        settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # on loopback
        for name, value in (settings | PROXY_ENV).items():
            os.environ.setdefault(name, value)
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


def _name(run: config.Run) -> str:
    """Of the coordinator's actor: one in a cluster for a run's folder."""
    return f"coordinator-{run.output.name}-{zlib.crc32(str(run.output).encode()):08x}"


def _launch(
    prepared: Prepared, url: str, team: type[Team], attempt: Attempt, *, resume: bool
) -> Any:
    """The coordinator: named, so that others find it; detached, so that it outlives its driver, on
    whose node it is, since there the run's folder and the verifier's port are."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Coordinator).options(
        name=_name(prepared.run), lifetime="detached", num_cpus=0, scheduling_strategy=here
    )
    deadline = time.monotonic() + RELEASE_S
    while True:
        try:
            return actor.remote(
                prepared.run,
                checkpoint=prepared.checkpoint,
                train=prepared.questions.train,
                heldout=prepared.questions.heldout,
                left_out=prepared.questions.left_out,
                verifier_url=url,
                resume=resume,
                attempt=attempt,
                cleanup=verifier.stop,
                team=team,
            )
        except ValueError as error:  # the name is taken
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"a run with the output {prepared.run.output} was started in this cluster",
                    fix="wait for it, or give another --output",
                ) from error
            time.sleep(POLL_S)


def _print_ending(progress: Progress, run: config.Run, begun_from: Path, verdict: str) -> None:
    summary = read_summary(run.output)
    assert summary is not None  # the coordinator writes it before it returns
    report = run.output / "report.html"
    trained = str(begun_from) if run.cold_start else None
    if summary.checkpoint:
        latest = kept.newest(run) if run.storage else run.output / "checkpoints" / "latest"
        trained = f"{latest}/hf"
    progress.finish(
        summary.stages,
        report=f"{run.storage or run.output}/report.html" if report.exists() else None,
        checkpoint=trained,
        verdict=verdict,
    )


def _print_plan(prepared: Prepared) -> None:
    run, questions = prepared.run, prepared.questions
    console = Console(highlight=False)
    trained, held_out = len(questions.train), len(questions.heldout)
    console.print(f"{trained} questions to train on, {held_out} held out")
    if questions.left_out.count:
        console.print(f"left out:\n{questions.left_out.told(SHOWN_BAD)}", markup=False)
    phases = ", ".join(phase.phase for phase in run.schedule)
    _say(f"model {run.model} on {run.device}: {phases}; output {run.storage or run.output}")
