"""What Ray Serve reads from the environment when its processes start."""

from __future__ import annotations

# Of the proxy: it sends to replicas by gRPC, with half the work of an actor call, and from one
# event loop. Those of a cluster that others started have what `ray start` was given.
PROXY_ENV = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
# Of our replicas: the same, the application on the replica's own event loop, and no look at what
# was imported whenever Python collects garbage. What may block, ours gives to threads.
REPLICA_ENV = PROXY_ENV | {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
}
