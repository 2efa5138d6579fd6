"""The learner's side of vLLM's own weight transfer (vLLM 0.32), and the only file of it that knows
vLLM. It is imported where there is a GPU, in the learner ranks' processes.

vLLM's trainer engines lead a whole update through a client of the inference side. Here the sync
leads: it begins and finishes updates for every transport alike, so the client does the middle part
at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from actors.transports.nccl import BUFFERS
from actors.waiting import Actors, Failures, Waiting
from veripo_ray import config
from veripo_ray.learner import Learner


class LearnerSource(WeightSource):
    """A learner's weights as vLLM's engines ask for them. Every rank iterates, in step."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def metadata(self) -> list[ParamMeta]:
        manifest = self._learner.manifest()
        dtype = getattr(torch, manifest.dtype)
        return [ParamMeta(name, dtype, shape) for name, shape in manifest.shapes.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self._learner.each_weight():
            # An engine fills its buffer with several; gathered ones do not stay as long.
            yield name, weight.clone() if self._learner.engine.stage == 3 else weight


class Silent:
    """A client that leaves everything to the sync."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class Telling(Silent):
    """A client that tells rollout workers directly what the sync could not know: where in the GPU's
    memory a bucket lies. One that fails is left out of what follows.

    failures: since the last `start_weight_update`.
    """

    def __init__(self, holders: Actors, cfg: config.Weights) -> None:
        self._holders = holders
        self._waiting = Waiting(holders, cfg.timeout_s, "weights.timeout_s")
        self.failures: Failures = {}

    def start_weight_update(self) -> None:
        self.failures = {}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        calls = {name: holder.connect.remote(init_info) for name, holder in self._holders.items()}
        asyncio.run(self._waiting.all(calls, "being told how weights come"))

    def update_weights(self, update_info: Any) -> None:
        well = {n: holder for n, holder in self._holders.items() if n not in self.failures}
        calls = {name: holder.receive.remote(update_info) for name, holder in well.items()}
        _, failed = asyncio.run(self._waiting.each(calls, "loading weights"))
        self.failures |= failed


class Sender:
    """What a rank sends with, ready for any number of syncs to the same holders."""

    def __init__(self, init_info: Any, learner: Learner, client: Silent) -> None:
        self._client = client
        self._engine = WeightTransferTrainerFactory.trainer_init(
            init_info, client=client, source=LearnerSource(learner)
        )

    @classmethod
    def nccl(
        cls, learner: Learner, cfg: config.Weights, address: tuple[str, int], world_size: int
    ) -> Sender:
        """Meets the holders at `address`, rank 0 alone; world_size: their processes and it."""
        info = NCCLTrainerInitInfo(
            *address,
            world_size,
            packed_buffer_size_bytes=cfg.bucket_bytes,
            packed_num_buffers=BUFFERS,
            rank=learner.rank,
        )
        return cls(info, learner, Silent())

    @classmethod
    def cuda_ipc(cls, learner: Learner, cfg: config.Weights, holders: Actors) -> Sender:
        """Shares one buffer, which the largest weight must fit into."""
        size = max(cfg.bucket_bytes, learner.manifest().largest_bytes)
        info = IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=size, rank=learner.rank)
        return cls(info, learner, Telling(holders, cfg))

    def send(self) -> Failures:
        """One sync's weights. Collective. Gives back the holders that failed, where it knows."""
        self._engine.send_weights()
        return self._client.failures if isinstance(self._client, Telling) else {}

    def close(self) -> None:
        self._engine.shutdown()
