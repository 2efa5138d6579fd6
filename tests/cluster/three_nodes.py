"""A Ray cluster of three nodes on this machine, for a test that takes one of them away.

    python three_nodes.py FOLDER

In a process of its own, since one process belongs to one Ray. The head has a GPU, the second node
four, the third one: logical GPUs, which no machine needs to have. Prints a line of JSON: the
address, and the nodes' ids. Then every line on stdin is an order: `remove` ends the third node
without a goodbye, `add` starts another like it; both print the ids. Ends with its stdin.
"""

from __future__ import annotations

import json
import sys
from typing import Any

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
    _tell(cluster, large, small)
    for order in map(str.strip, sys.stdin):
        if order == "remove":
            cluster.remove_node(small, allow_graceful=False)
        else:
            small = _small(cluster, common)
        _tell(cluster, large, small)
    cluster.shutdown()


def _small(cluster: Cluster, common: dict[str, Any]) -> Any:
    return cluster.add_node(num_cpus=7, num_gpus=1, **common)


def _tell(cluster: Cluster, large: Any, small: Any) -> None:
    ids = {"head": cluster.head_node.node_id, "large": large.node_id, "small": small.node_id}
    sys.stdout.write(json.dumps({"address": cluster.address, **ids}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
