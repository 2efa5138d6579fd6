"""How learner ranks find each other: a store, hosted by rank 0, and a roll call with a limit."""

from __future__ import annotations

import socket
from datetime import timedelta

import psutil
import torch.distributed as dist

from veripo_ray.errors import ResourceError

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # a rank may wait this long for a slower one's backward
Address = tuple[str, int]


def host(port: int = 0) -> tuple[dist.Store, int]:
    """Open the store on rank 0's machine. Port 0 lets the system choose a free one, which is held
    from then on: nobody can take it between choosing and listening."""
    store = dist.TCPStore("0.0.0.0", port, is_master=True, wait_for_workers=False)
    return store, store.port


def interface_of(ip: str) -> str | None:
    """The network interface that has this address; None when none of this machine has.

    Gloo takes the one that the host's name leads to, which on many machines is the loopback: ranks
    on other nodes never reach it.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == ip for address in addresses):
            return name
    return None


def connect(address: Address, timeout_s: float) -> dist.Store:
    """Reach rank 0's store. Raises ResourceError when it does not answer in time."""
    name, port = address
    try:
        limit = timedelta(seconds=timeout_s)
        return dist.TCPStore(name, port, is_master=False, wait_for_workers=False, timeout=limit)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise ResourceError(
            f"learner rank 0 did not answer at {name}:{port} within {timeout_s:g} s",
            fix="see whether rank 0's actor died, and whether the nodes reach each other's ports",
        ) from error


def join(store: dist.Store, rank: int, world_size: int, backend: str, timeout_s: float) -> None:
    """Make the process group, once every rank has answered the roll call."""
    if dist.is_initialized():
        _check_same_group(rank, world_size)
        return
    call_the_roll(store, rank, world_size, timeout_s)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT
    )


def call_the_roll(store: dist.Store, rank: int, world_size: int, timeout_s: float) -> None:
    """Wait for all ranks. Raises ResourceError naming those missing after `timeout_s` seconds."""
    store.set(f"here/{rank}", socket.gethostname())
    names = [f"here/{other}" for other in range(world_size)]
    try:
        store.wait(names, timedelta(seconds=timeout_s))
    except dist.DistStoreError as error:
        missing = [other for other, name in enumerate(names) if not store.check([name])]
        raise ResourceError(
            f"learner ranks {missing} of {world_size} did not join within {timeout_s:g} s",
            fix="look for their actors' errors; learner.ranks needs as many CPUs or GPUs",
        ) from error


def _check_same_group(rank: int, world_size: int) -> None:
    """One process belongs to one process group for life."""
    own, ranks = dist.get_rank(), dist.get_world_size()
    if (own, ranks) != (rank, world_size):
        raise ResourceError(
            f"this process is rank {own} of {ranks} already, not rank {rank} of {world_size}",
            fix="host every learner rank in a process of its own",
        )


def alone() -> dist.Store:
    """The store of a learner of one rank: in memory, no port."""
    return dist.HashStore()
