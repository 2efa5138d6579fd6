"""The run's status on disk, for whoever cannot ask the coordinator: status.json."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from veripo_ray.errors import DataError
from veripo_ray.progress.status import Status
from veripo_ray.runlog import write_atomic

STATUS = "status.json"


@dataclass(frozen=True, slots=True)
class Written:
    """A status, the time it was written (seconds since 1970), and whether its run goes on."""

    status: Status
    time: float
    ended: bool


_Written = TypeAdapter(Written)


def write_status(folder: Path, status: Status, *, ended: bool = False) -> None:
    """Replace the run's status.json in one step."""
    written = Written(status, time.time(), ended)
    write_atomic(folder / STATUS, _Written.dump_json(written, indent=1) + b"\n")


def read_status(folder: Path) -> Written | None:
    """None where no run has written one; DataError when it is not one."""
    path = folder / STATUS
    if not path.is_file():
        return None
    try:
        return _Written.validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path} is no status of a run: {error.errors()[0]['msg']}",
            fix="delete it; a running run writes it anew at its next step",
        ) from error
