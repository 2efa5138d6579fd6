"""Settings of where a run's figures go, beside metrics.jsonl."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from veripo_ray.config.base import Settings


class Wandb(Settings):
    """Weights & Biases, with the extra `wandb` installed."""

    project: str = Field(min_length=1)
    entity: str | None = Field(None, description="a user or team; None: the key's own")
    mode: Literal["online", "offline"] = Field(
        "online", description="offline: into the run's folder, for `wandb sync`"
    )


class Tracking(Settings):
    """Other places for the figures of metrics.jsonl."""

    tensorboard: bool = True
    wandb: Wandb | None = None
