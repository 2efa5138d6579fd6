"""The ways that weights travel from learner ranks to those who hold a copy of them."""

from actors.transports.cuda_ipc import CudaIpc
from actors.transports.nccl import Nccl
from actors.transports.object_store import ObjectStore
from actors.transports.protocol import Transport
from veripo_ray import config


def direct(name: config.TransportName, cfg: config.Weights, processes: int) -> Transport:
    """The transport of this name to rollout workers of so many processes each."""
    if name == "nccl":
        return Nccl(cfg, processes)
    return CudaIpc(cfg) if name == "cuda_ipc" else ObjectStore(cfg)


__all__ = ["CudaIpc", "Nccl", "ObjectStore", "Transport", "direct"]
