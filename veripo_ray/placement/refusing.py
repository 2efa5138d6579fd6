"""A plan, or the reason why there is none and what to change."""

from __future__ import annotations

from dataclasses import replace

from veripo_ray import config
from veripo_ray.errors import ResourceError
from veripo_ray.placement.cluster import Cluster
from veripo_ray.placement.geometry import Geometry
from veripo_ray.placement.plan import Misfit, Plan, attempt
from veripo_ray.placement.remedies import Remedies, more_nodes
from veripo_ray.placement.roles import bundles, on_gpus


def plan(
    run: config.Run, cluster: Cluster, model: Geometry | None = None, *, served: bool = True
) -> Plan:
    """Place the run on the cluster, `run.device` being known.

    model: `Geometry.of(run.model)`; None leaves memory unchecked, as do nodes that do not tell
    their GPUs' memory. served: with the replicas of Ray Serve.
    Raises ResourceError that names what is short, and as its fix the nearest changes that fit;
    ConfigError for a layout that the device does not have.
    """
    found = attempt(run, cluster, model, served=served)
    if isinstance(found, Misfit):
        raise ResourceError(str(found), fix=_fix(run, cluster, model))
    return found


def _fix(run: config.Run, cluster: Cluster, model: Geometry | None) -> str:
    """Each remedy in a line of its own."""
    if on_gpus(run) and not cluster.total("GPU"):
        return (
            "run it where GPUs are (set RAY_ADDRESS); `veripo plan RECIPE --nodes 1 "
            "--gpus-per-node 8 --gpu-memory 80` plans for a cluster that is elsewhere"
        )
    lines = [" ".join(map(str, changes)) for changes in Remedies(run, cluster, model).nearest()]
    if more := more_nodes(run, cluster, model):
        number, like = more
        nodes = "1 more node" if number == 1 else f"{number} more nodes"
        lines.append(f"{nodes} of {like.gpus:g} GPUs and {like.cpus:g} CPUs")
    if cpus := _logical_cpus(run, cluster, model):
        lines.append(
            f"ray start --head --num-cpus {cpus:g} (Ray counts logical CPUs: without GPUs actors "
            "take turns on those that are there)"
        )
    if not lines:
        return "a larger cluster, GPUs with more memory, or a smaller model: no setting is enough"
    return "\n    or ".join(lines)


def _logical_cpus(run: config.Run, cluster: Cluster, model: Geometry | None) -> float:
    """With how many CPUs a single node would carry a run without GPUs; 0 where none will do."""
    if on_gpus(run) or len(cluster.nodes) != 1:
        return 0.0
    needed = float(sum(bundle.cpus for bundle in bundles(run)))
    node = replace(cluster.nodes[0], cpus=needed)
    return needed if isinstance(attempt(run, Cluster((node,)), model), Plan) else 0.0
