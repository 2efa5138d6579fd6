"""A plan of a run: which process sits where."""

from __future__ import annotations

from dataclasses import dataclass

from veripo_ray import config
from veripo_ray.errors import ConfigError, ResourceError
from veripo_ray.placement.cluster import Cluster, told
from veripo_ray.placement.packing import Placed, pack
from veripo_ray.placement.roles import Bundle, Role, bundles


@dataclass(frozen=True, slots=True)
class Plan:
    """Every bundle of a run and its place on a cluster."""

    run: config.Run
    cluster: Cluster
    placed: tuple[Placed, ...]

    def seat(self, role: Role, number: int) -> Placed:
        """Where the `number`-th process of a role sits."""
        return next(
            placed
            for placed in self.placed
            if any(p.role == role and p.number == number for p in placed.bundle.processes)
        )


def plan(run: config.Run, cluster: Cluster, *, served: bool = True) -> Plan:
    """Place the run on the cluster, `run.device` being known.

    served: with the replicas of Ray Serve; False once these have started. Raises ResourceError
    that names what is short.
    """
    _check_layout(run)
    wanted = bundles(run, served=served)
    placed, left = pack(wanted, cluster.nodes, spread=run.placement.learner == "spread")
    if left:
        raise ResourceError(
            _short(run, wanted, left, cluster), fix="add nodes, or lower the settings named"
        )
    return Plan(run, cluster, tuple(placed))


def _check_layout(run: config.Run) -> None:
    colocated = run.placement.layout == "colocated"
    if colocated and run.device == "cpu" and not run.placement.rehearse:
        raise ConfigError(
            "placement.layout = colocated shares GPUs, and device = cpu has none",
            fix="placement.layout=separate; or placement.rehearse=true, to try the layout on "
            "logical GPUs, where nothing sleeps",
        )


def _short(run: config.Run, wanted: list[Bundle], left: list[Bundle], cluster: Cluster) -> str:
    for kind in ("GPU", "CPU"):
        needed = sum(_amounts(wanted, kind).values())
        if needed > cluster.total(kind):
            asked = ", ".join(
                f"{role} {amount:g} ({_settings(run)[role]})"
                for role, amount in _amounts(wanted, kind).items()
                if amount
            )
            there = f"{cluster.name} has {cluster.total(kind):g}"
            return f"the run needs {needed:g} {kind}s, {there}: {asked}"
    roles = sorted({str(process.role) for bundle in left for process in bundle.processes})
    settings = ", ".join(_settings(run)[Role(role)] for role in roles)
    return (
        f"no node has room for {', '.join(roles)} beside all else ({settings}): {cluster.name} "
        f"has {told(cluster.nodes)}"
    )


def _amounts(bundles: list[Bundle], kind: str) -> dict[Role, float]:
    """CPUs or GPUs of each role; what shares a GPU counts by its part."""
    amounts: dict[Role, float] = {}
    for bundle in bundles:
        for process in bundle.processes:
            share = bundle.gpus / len(bundle.processes)
            amounts[process.role] = amounts.get(process.role, 0.0) + (
                share if kind == "GPU" else process.cpus
            )
    return amounts


def _settings(run: config.Run) -> dict[Role, str]:
    """What the size of each role was set by."""
    rollout, judge = run.rollout, run.verifier.judges.vllm
    return {
        Role.ENCODER: f"features.decoders = {run.features.decoders}",
        Role.ROLLOUT: f"rollout.workers = {rollout.workers}, "
        f"rollout.tensor_parallel = {rollout.tensor_parallel}",
        Role.LEARNER: f"learner.ranks = {run.learner.ranks}",
        Role.REFERENCE: "one process",
        Role.VERIFIER: f"verifier.replicas = {run.verifier.replicas}",
        Role.JUDGE: f"verifier.judges.vllm.replicas = {judge.replicas}, cpus = {judge.cpus}, "
        f"gpus = {judge.gpus:g}",
    }
