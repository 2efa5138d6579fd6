"""What is different where a run is a job of Ray's, started by `ray job submit`.

Ray copies the working directory of a job to the cluster and deletes it there some time after the
job: what a run writes must not lie in it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from veripo_ray import config

HOME = "VERIPO_HOME"  # where relative outputs of jobs go
_DEFAULT_HOME = "~/veripo-ray"
_COPY = re.compile(r"/working_dir_files/[^/]+/")  # of a job's working directory, on a node


def in_job() -> bool:
    """Whether this process is the driver of a submitted job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # Ray's own, set for its entrypoint


def lasting(output: Path) -> Path:
    """A run's folder that is there after the job: a relative one lies below $VERIPO_HOME, or
    ~/veripo-ray, on the node where the job's driver runs. Outside of a job paths are as given."""
    if not in_job():
        return output
    home = Path(os.environ.get(HOME) or _DEFAULT_HOME)
    return home.expanduser().absolute() / output.expanduser()


def place(run: config.Run) -> config.Run:
    return run.model_copy(update={"output": lasting(run.output)})


def same_anywhere(setting: object) -> object:
    """A setting as text in which files of the working directory have the same name in every job,
    though each job has a copy of its own."""
    return _COPY.sub("/working_dir_files/*/", str(setting))
