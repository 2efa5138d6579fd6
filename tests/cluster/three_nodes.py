"""A Ray cluster of three nodes on this machine, for a test that takes one of them away.

    python three_nodes.py FOLDER

In a process of its own, since one process belongs to one Ray. The head has a GPU, the second node
four, the third one: logical GPUs, which no machine needs to have. Prints a line of JSON: the
address, and the nodes' ids. Then every line on stdin is an order: `remove` ends the third node
without a goodbye, `add` starts another like it, `where` does nothing; each prints the ids, and the
nodes that the living actors of each class sit on, by name. Ends with its stdin.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from typing import Any

import ray
from ray._private import state  # the public way wants a dashboard
from ray.cluster_utils import Cluster

# A node that is gone is noticed in about 2 s, and one that is merely slow is left alone.
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 20_000,
}
STORE_BYTES = 100 << 20


def main(folder: str) -> None:
    common = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    head = {"num_cpus": 6, "num_gpus": 1, "_system_config": HEALTH, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args={**common, **head})
    large = cluster.add_node(num_cpus=8, num_gpus=4, **common)
    small = _small(cluster, common)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    _tell(cluster, large, small)
    for order in map(str.strip, sys.stdin):
        if order == "remove":
            cluster.remove_node(small, allow_graceful=False)
        elif order == "add":
            small = _small(cluster, common)
        _tell(cluster, large, small)
    ray.shutdown()
    cluster.shutdown()


def _small(cluster: Cluster, common: dict[str, Any]) -> Any:
    return cluster.add_node(num_cpus=9, num_gpus=1, **common)


def _tell(cluster: Cluster, large: Any, small: Any) -> None:
    nodes = {"head": cluster.head_node.node_id, "large": large.node_id, "small": small.node_id}
    told = {"address": cluster.address, **nodes, "actors": _actors(nodes)}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def _actors(nodes: dict[str, str]) -> dict[str, list[str]]:
    names = {id_: name for name, id_ in nodes.items()}
    found = defaultdict(list)
    for actor in state.actors().values():
        if actor["State"] == "ALIVE":
            found[actor["ActorClassName"]].append(names[actor["Address"]["NodeID"]])
    return {kind: sorted(places) for kind, places in found.items()}


if __name__ == "__main__":
    main(sys.argv[1])
