"""What a cluster has: its nodes, and their CPUs, GPUs and memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

GB = 1e9
# By Ray's name of a GPU, of which there is one size; no more than its driver says it has.
GPU_MEMORY_GB = {
    "A10G": 24, "A100-40G": 42, "A100-80G": 85, "B200": 190, "B300": 285, "H20": 102, "H100": 80,
    "H200": 150, "L4": 24, "L40S": 48, "RTX-PRO-6000": 102, "T4": 15,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Node:
    """cpus, gpus: logical, as Ray counts them. gpu_memory: a GPU's, memory: the node's for Ray's
    workers, both in bytes and None where nobody tells."""

    id: str
    cpus: float
    gpus: float = 0.0
    gpu_memory: float | None = None
    memory: float | None = None
    gpu_kind: str = ""


@dataclass(frozen=True, slots=True)
class Cluster:
    """name: how messages call it."""

    nodes: tuple[Node, ...]
    name: str = "the cluster"

    @classmethod
    def uniform(
        cls,
        nodes: int,
        *,
        gpus: int,
        gpu_memory_gb: float | None = None,
        cpus: float | None = None,
        memory_gb: float | None = None,
    ) -> Cluster:
        """Equal nodes that need not exist. cpus: a node's; None: as many as 12 a GPU, at least 16,
        which is what GPU nodes of the clouds have."""
        each = Node(
            id="",
            cpus=cpus if cpus is not None else max(16.0, 12.0 * gpus),
            gpus=float(gpus),
            gpu_memory=gpu_memory_gb and gpu_memory_gb * GB,
            memory=memory_gb and memory_gb * GB,
        )
        name = f"{nodes} node{'s' if nodes > 1 else ''} of {gpus} GPUs"
        return cls(tuple(_named(each, number) for number in range(nodes)), name)

    def total(self, kind: str) -> float:
        """Of 'CPU' or 'GPU', over all nodes."""
        return sum(node.cpus if kind == "CPU" else node.gpus for node in self.nodes)


def _named(node: Node, number: int) -> Node:
    return Node(f"node-{number}", node.cpus, node.gpus, node.gpu_memory, node.memory, node.gpu_kind)


def told(nodes: Iterable[Node]) -> str:
    """`2 nodes of 8 GPUs and 96 CPUs`, equal ones together."""
    counts: dict[tuple[float, float], int] = {}
    for node in nodes:
        counts[node.gpus, node.cpus] = counts.get((node.gpus, node.cpus), 0) + 1
    parts = [
        f"{number} node{'s' if number > 1 else ''} of {gpus:g} GPUs and {cpus:g} CPUs"
        for (gpus, cpus), number in sorted(counts.items(), reverse=True)
    ]
    return ", ".join(parts) or "no node"
