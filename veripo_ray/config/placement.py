"""Settings of where processes go, and of which GPUs they share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from veripo_ray.config.base import Positive, Settings


class Placement(Settings):
    """Who runs where on the cluster [ours]."""

    layout: Literal["separate", "colocated"] = Field(
        "separate",
        description="separate: rollout workers and learner ranks have GPUs of their own; "
        "colocated: worker i and rank i share one, and the worker sleeps while the rank works",
    )
    learner: Literal["pack", "spread"] = Field(
        "pack", description="learner ranks on as few nodes as will do, or on as many"
    )
    sleep_level: Literal[1, 2] = Field(
        1,
        description="of a worker that shares its GPU. 1: its weights wait in the node's memory; 2: "
        "they are dropped, and come back with the next weight update",
    )
    gpu_memory_gb: Positive | None = Field(
        None, description="a GPU's, in GB of 1e9 bytes; None: as the nodes tell it"
    )
    rehearse: bool = Field(
        False,
        description="ask Ray for GPUs on device=cpu, too: tries a layout on logical GPUs, such as "
        "`ray start --num-gpus=8` gives a machine without any",
    )
    deadline_s: Positive = Field(120.0, description="longest wait for the cluster's resources")
