"""Which attempt at a run may write into its folder: the newest.

Two attempts can overlap, as when the pods of one are still being ended while the next begins. Every
attempt takes the next number in `attempts/`. What belongs to the run is written inside `writing()`,
which locks the folder and refuses once there is a newer attempt: what that one has read and written
stays as it is. Needs a file system with locks that hold on every node: a local one, NFS, CephFS,
Lustre mounted with `flock`; buckets have a way of their own (see `mirror`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from veripo_ray.errors import ConfigError, ResourceError, TakenOver

FOLDER = "attempts"
LOCK_S = 120.0  # longest wait for who is writing
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)

Writing = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a run. Its number is larger than those of all before it. claim: its name where
    the run is kept, when that is at a URI (see `mirror`)."""

    run_folder: Path
    number: int
    claim: str = ""

    @classmethod
    def begin(cls, run_folder: Path, claim: str = "") -> Attempt:
        """Take the next number: from now on every earlier attempt is refused."""
        with _locked(run_folder):
            number = _newest(run_folder) + 1
            begun = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "begun": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            with _file(run_folder, number).open("x") as file:
                json.dump(begun, file)
        return cls(run_folder, number, claim)

    def check(self) -> None:
        """Raises TakenOver when a newer attempt has begun."""
        newest = _newest(self.run_folder)
        if newest != self.number:
            raise TakenOver(
                f"attempt {newest} has taken over the run in {self.run_folder}: "
                f"this one, attempt {self.number}, writes no more",
                fix="nothing, if that was meant; see the log of the newer one",
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, no newer attempt can begin. Not to be nested. Raises TakenOver instead when one
        has begun."""
        with _locked(self.run_folder):
            self.check()
            yield


def _file(run_folder: Path, number: int) -> Path:
    return run_folder / FOLDER / f"{number:06d}.json"


def _newest(run_folder: Path) -> int:
    """0 where there is none. Lists the folder, since that is what NFS looks up afresh."""
    names = os.listdir(run_folder / FOLDER)
    return max((int(name[:6]) for name in names if name.endswith(".json")), default=0)


@contextmanager
def _locked(run_folder: Path) -> Iterator[None]:
    """Hold the run's lock. The system lets go of it when the process ends, however it does."""
    (run_folder / FOLDER).mkdir(parents=True, exist_ok=True)
    with (run_folder / FOLDER / "lock").open("a") as file:
        deadline = time.monotonic() + LOCK_S
        while not _taken(file.fileno(), run_folder):
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"another process has held the lock of {run_folder} for {LOCK_S:g} s",
                    fix="end the other attempt at this run if it hangs, then go on with --resume",
                )
            time.sleep(0.02)
        yield  # closing the file lets go


def _taken(descriptor: int, run_folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise ConfigError(
            f"output = {run_folder} is on a file system without locks ({error.strerror}), so that "
            "two attempts at a run could spoil each other's files",
            fix="mount it with locks (Lustre: -o flock), or give the URI of a bucket as output",
        ) from error
    return True
