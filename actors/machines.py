"""What the Ray cluster has, node by node."""

from __future__ import annotations

import ray
from ray._private.state import available_resources_per_node  # there is no public way, node by node

from veripo_ray.placement import Cluster, Node
from veripo_ray.placement.cluster import GB, GPU_MEMORY_GB

MEMORY_LABEL = "gpu-memory-gb"  # of a node: `ray start --labels gpu-memory-gb=80`
_KIND = "accelerator_type:"


def cluster_now(*, free: bool = False) -> Cluster:
    """The nodes that are alive. free: only what nobody uses at this moment."""
    left = available_resources_per_node() if free else {}
    nodes = [node for node in ray.nodes() if node["Alive"]]
    name = "the cluster, as it is now," if free else "the cluster"
    return Cluster(tuple(_node(node, left.get(node["NodeID"], {}), free) for node in nodes), name)


def _node(seen: dict, left: dict[str, float], free: bool) -> Node:
    resources = left if free else seen["Resources"]
    label = seen.get("Labels", {}).get(MEMORY_LABEL)
    kinds = [name.removeprefix(_KIND) for name in seen["Resources"] if name.startswith(_KIND)]
    kind = kinds[0] if kinds else ""
    gigabytes = label or GPU_MEMORY_GB.get(kind)
    return Node(
        id=seen["NodeID"],
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        gpu_memory=gigabytes and float(gigabytes) * GB,
        memory=seen["Resources"].get("memory"),
        gpu_kind=kind,
    )
