"""A plan of a run: which process sits where, and what it takes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from veripo_ray import config
from veripo_ray.errors import ConfigError
from veripo_ray.placement import fit
from veripo_ray.placement.cluster import GB, Cluster, told
from veripo_ray.placement.fit import Load
from veripo_ray.placement.geometry import Geometry
from veripo_ray.placement.memory import Memory, of_process
from veripo_ray.placement.packing import Placed, pack
from veripo_ray.placement.roles import Bundle, Process, Role, bundles


@dataclass(frozen=True, slots=True)
class Plan:
    """Every bundle of a run and its place on a cluster. model: None where its geometry is not
    known; then there are no loads, and memory is not checked."""

    run: config.Run
    cluster: Cluster
    model: Geometry | None
    placed: tuple[Placed, ...]
    loads: tuple[Load, ...]

    def seat(self, role: Role, number: int) -> Placed:
        """Where the `number`-th process of a role sits."""
        return next(
            placed
            for placed in self.placed
            if any(p.role == role and p.number == number for p in placed.bundle.processes)
        )

    def processes(self, role: Role) -> list[tuple[Process, Placed]]:
        """Every process of a role, with its place."""
        return [
            (process, placed)
            for placed in self.placed
            for process in placed.bundle.processes
            if process.role == role
        ]

    def memory(self, role: Role) -> Memory | None:
        """What a process of this role takes of each of its GPUs, or on a CPU of its node."""
        found = self.processes(role)
        if self.model is None or not found:
            return None
        process, placed = found[0]
        return of_process(process, self.run, self.model, fit.gpu_memory(self.run, placed.node))


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a run does not fit: bundles that found no room, or else GPUs and nodes whose memory is
    too small."""

    run: config.Run
    cluster: Cluster
    wanted: tuple[Bundle, ...]
    left: tuple[Bundle, ...]
    memory: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.left:
            return _short(self.run, self.wanted, self.left, self.cluster)
        return "\n  ".join(self.memory)


def attempt(
    run: config.Run, cluster: Cluster, model: Geometry | None = None, *, served: bool = True
) -> Plan | Misfit:
    """Place the run on the cluster, `run.device` being known.

    model: None leaves memory unchecked. served: with the replicas of Ray Serve. Raises ConfigError
    for a layout that the device does not have.
    """
    _check_layout(run)
    wanted = tuple(bundles(run, served=served))
    if _hopeless(wanted, cluster):
        return Misfit(run, cluster, wanted, wanted)
    placed, left = pack(wanted, cluster.nodes, spread=run.placement.learner == "spread")
    if left:
        return Misfit(run, cluster, wanted, tuple(left))
    found: list[Load] = []
    if model and run.device != "cpu":  # the GPUs of a rehearsal have no memory
        found = fit.loads(run, placed, model)
    short = [*fit.shortages(run, found), *(_asleep(run, placed, model) if model else [])]
    if short:
        return Misfit(run, cluster, wanted, (), tuple(short))
    return Plan(run, cluster, model, tuple(placed), tuple(found))


def _hopeless(wanted: Sequence[Bundle], cluster: Cluster) -> bool:
    """Whether sums alone say no."""
    cpus, gpus = sum(b.cpus for b in wanted), sum(b.gpus for b in wanted)
    return cpus > cluster.total("CPU") or gpus > cluster.total("GPU")


def _asleep(run: config.Run, placed: Sequence[Placed], model: Geometry) -> list[str]:
    """Weights of workers that sleep at level 1 wait in their node's memory."""
    if run.placement.layout == "separate" or run.placement.sleep_level == 2 or run.device == "cpu":
        return []
    short = []
    for node in {place.node.id: place.node for place in placed}.values():
        workers = sum(p.node.id == node.id and p.bundle.has(Role.ROLLOUT) for p in placed)
        waiting = workers * of_process(Process(Role.ROLLOUT, 0, 1, 1), run, model, None).weights
        if node.memory is not None and waiting > node.memory:
            short.append(
                f"{node.id[:12]} has {node.memory / GB:.0f} GB of memory, and {workers} sleeping "
                f"rollout workers leave {waiting / GB:.0f} GB of weights there "
                f"(placement.sleep_level = 1)"
            )
    return short


def _check_layout(run: config.Run) -> None:
    colocated = run.placement.layout == "colocated"
    if colocated and run.device == "cpu" and not run.placement.rehearse:
        raise ConfigError(
            "placement.layout = colocated shares GPUs, and device = cpu has none",
            fix="placement.layout=separate; or placement.rehearse=true, to try the layout on "
            "logical GPUs, where nothing sleeps",
        )


def _short(
    run: config.Run, wanted: Sequence[Bundle], left: Sequence[Bundle], cluster: Cluster
) -> str:
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


def _amounts(bundles: Sequence[Bundle], kind: str) -> dict[Role, float]:
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
