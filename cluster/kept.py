"""A run that is kept at a URI, seen from its driver: what comes from there before it starts."""

from __future__ import annotations

import shutil

from cluster import job, preflight
from veripo_ray import config
from veripo_ray.attempt import FOLDER, Attempt
from veripo_ray.errors import ConfigError
from veripo_ray.mirror import Mirror
from veripo_ray.storage import local_folder


def check(run: config.Run, *, resume: bool, overwrite: bool) -> None:
    """Neither is a run overwritten at its URI by accident nor resumed from nothing."""
    if run.storage is None:
        return
    begun = Mirror(run.storage).begun()
    if resume and not begun:
        raise ConfigError(
            f"--resume: {run.storage} holds no run that has begun",
            fix="start it without --resume, or correct the output",
        )
    if begun and not (resume or overwrite):
        raise ConfigError(
            f"output = {run.storage} already holds a run",
            fix="--resume goes on with it, --overwrite deletes it, another output leaves it alone",
        )


def arrive(run: config.Run, *, resume: bool, overwrite: bool) -> None:
    """Make the local folder what the URI says it is: empty for a new run; for one that goes on, as
    it was when it began. Nothing for a run that is kept in a folder."""
    if run.storage is None:
        return
    mirror = Mirror(run.storage)
    if resume:
        mirror.get_beginning(run.output)
        return
    if overwrite:
        mirror.clear()
    if run.output == local_folder(run.storage):  # what is there is of a run that is no more
        for path in run.output.glob("*"):
            if not path.is_dir() or path.is_symlink():
                path.unlink()
            elif path.name != FOLDER:
                shutil.rmtree(path)


def has_begun(run: config.Run) -> bool:
    return Mirror(run.storage).begun() if run.storage else preflight.has_begun(job.place(run))


def begin(run: config.Run, *, resume: bool) -> Attempt:
    """A new attempt, here and at the URI: earlier ones write no more. One that goes on finds the
    newest whole checkpoint in the run's folder then."""
    if run.storage is None:
        return Attempt.begin(run.output)
    mirror = Mirror(run.storage)
    attempt = Attempt.begin(run.output, mirror.begin())
    with attempt.writing():
        if resume:
            mirror.restore(run.output)
        else:
            mirror.put_beginning(run.output)
    return attempt


def keep_cold_start(run: config.Run) -> None:
    """What the sft phases have made, so that no later attempt repeats them."""
    if run.storage and run.cold_start:
        Mirror(run.storage).put_cold_start(run.output)


def newest(run: config.Run) -> str | None:
    """The last whole checkpoint at the URI."""
    assert run.storage is not None
    record = Mirror(run.storage).newest()
    return f"{run.storage}/checkpoints/{record.kept[record.number]}" if record else None
