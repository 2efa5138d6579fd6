"""Where a run stands, asked from another shell: of its coordinator, or read in its folder."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import AuthenticationError, GetTimeoutError, RayActorError
from rich.console import Console
from rich.text import Text

from cluster.launch import NAMESPACE
from veripo_ray.errors import ConfigError, ResourceError
from veripo_ray.progress import Status
from veripo_ray.progress.formats import duration
from veripo_ray.progress.lines import plain_line, stage_line
from veripo_ray.progress.written import Written, read_status

COORDINATOR = "coordinator-"  # names of coordinators begin with it
ANSWER_S = 10.0  # a coordinator answers at once, whatever its run is doing


def show(which: str | None, address: str | None) -> None:
    """Print the status of the run in the folder `which`; or of the runs of a cluster, of those
    named `which` if it is given. Raises ConfigError or ResourceError when there is none."""
    if which and not address and (written := read_status(Path(which))):
        _print(written.status, _when(written))
        return
    where = address or os.environ.get("RAY_ADDRESS")
    if not where:
        raise ConfigError(
            f"{which} holds no run that has told its status" if which else "no run is named",
            fix="name a run's folder, or give the cluster by --address or RAY_ADDRESS",
        )
    with _connected(where):
        found = [status for status in _statuses() if which in (None, status.run)]
    if not found:
        raise ResourceError(
            f"no run{f' named {which!r}' if which else ''} goes on in the cluster at {where}",
            fix="name its folder instead; or see `ray job list` for how it ended",
        )
    for status in found:
        _print(status)


def _statuses() -> Iterator[Status]:
    """Of every coordinator that answers."""
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] != NAMESPACE or not actor["name"].startswith(COORDINATOR):
            continue
        try:
            coordinator = ray.get_actor(actor["name"], NAMESPACE)
            yield ray.get(coordinator.status.remote(), timeout=ANSWER_S)
        except (ValueError, RayActorError):  # it ended since it was listed
            continue
        except GetTimeoutError:
            yield Status(run=actor["name"], phase="unknown", message="its coordinator is silent")


@contextmanager
def _connected(address: str) -> Iterator[None]:
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address} is the address of a dashboard, for jobs",
            fix="give the head's, as HOST:6379; or ask there: ray job submit -- veripo status",
        )
    _check_reachable(address)
    try:
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except AuthenticationError as error:
        raise ResourceError(
            f"the cluster at {address} takes another token", fix="set RAY_AUTH_TOKEN to its own"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"the cluster at {address} cannot be joined: {error}",
            fix="ask on one of its nodes, with RAY_AUTH_MODE and RAY_AUTH_TOKEN as there",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself tries for a minute."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdigit()):  # as `auto`: for Ray to find
        return
    try:
        socket.create_connection((host.rpartition("/")[2], int(port)), timeout=5).close()
    except OSError as error:
        raise ResourceError(
            f"nothing answers at {address}: {error}", fix="check --address or RAY_ADDRESS"
        ) from error


def _when(written: Written) -> str:
    if written.ended:
        return "ended"
    return f"{duration(time.time() - written.time)} ago"


def _print(status: Status, note: str = "") -> None:
    console = Console(highlight=False)
    for stage in status.stages:
        console.print(Text(f"{status.run}: {stage_line(stage)}"), soft_wrap=True)
    line = plain_line(status) + (f" · {note}" if note else "")
    console.print(Text(line), soft_wrap=True)
