"""A run is planned on what there is before anything starts, and before anything slow is imported:
what does not fit is refused in the time that it takes to connect to the cluster."""

from __future__ import annotations

import os

import ray
from rich.console import Console

from actors.machines import cluster_now
from cluster.here import this_machine, torch_uses_gpus
from veripo_ray import config
from veripo_ray.errors import CheckpointError
from veripo_ray.placement import Cluster, Geometry, plan
from veripo_ray.placement.printed import as_json, in_short, table

NAMESPACE = "veripo"


def planned(run: config.Run) -> config.Run:
    """The run with its device, once it has a plan, which is printed. Where RAY_ADDRESS is set, this
    process is connected to that cluster from here on.

    Raises ResourceError for what does not fit, with the changes that would.
    """
    cluster = there()
    run = with_device(run, cluster)
    found = plan(run, cluster, geometry(run))
    Console(highlight=False).print(in_short(found), markup=False, soft_wrap=True)
    return run


def show(run: config.Run, cluster: Cluster | None, *, json: bool) -> None:
    """`veripo plan`: the whole table, on this cluster or the one that is there."""
    cluster = cluster or there()
    run = with_device(run, cluster)
    found = plan(run, cluster, Geometry.of(run.model))
    if json:
        Console(soft_wrap=True).print_json(data=as_json(found))
    else:
        console = Console(highlight=False)
        console.print(*table(found), sep="\n")


def there() -> Cluster:
    """The cluster of RAY_ADDRESS, or this machine."""
    if not os.environ.get("RAY_ADDRESS"):
        return this_machine()
    connect()
    return cluster_now()


def connect() -> None:
    """To the cluster of RAY_ADDRESS (`ray job submit` sets it), if this process is not yet."""
    if not ray.is_initialized():
        ray.init(namespace=NAMESPACE, log_to_driver=False)


def with_device(run: config.Run, cluster: Cluster | None = None) -> config.Run:
    """'auto' becomes 'cuda' where there are GPUs and torch was built for them, else 'cpu'."""
    if run.device != "auto":
        return run
    cluster = cluster or there()
    gpus = cluster.total("GPU") > 0 and torch_uses_gpus()
    return run.model_copy(update={"device": "cuda" if gpus else "cpu"})


def geometry(run: config.Run) -> Geometry | None:
    """None for a model that is not here or cannot be used, which the checks to come tell."""
    try:
        return Geometry.of(run.model)
    except CheckpointError:
        return None
