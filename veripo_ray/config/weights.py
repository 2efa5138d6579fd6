"""How weights travel from the learner to those who hold a copy of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from veripo_ray.config.base import Positive, Settings

TransportName = Literal["object_store", "nccl", "cuda_ipc"]


class Weights(Settings):
    """The weight sync [ours]."""

    transport: TransportName | Literal["auto"] = Field(
        "auto",
        description="to the rollout workers. object_store: through host memory, works anywhere; "
        "nccl: a broadcast between separate GPUs; cuda_ipc: within GPUs that learner and rollout "
        "workers share. auto: what suits the device",
    )
    bucket_mb: Positive = Field(64.0, description="weights sent at a time; few such are alive")
    timeout_s: Positive = Field(600.0, description="longest wait of a sync for any one actor")

    @property
    def bucket_bytes(self) -> int:
        return max(1, round(self.bucket_mb * 1e6))
