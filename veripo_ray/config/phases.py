"""Settings of the phases: grpo, dpo and sft, and an entry of the schedule of each.

Tags in the descriptions: see `veripo_ray.config.run`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from veripo_ray.config.base import Count, Fraction, Positive, Settings


class Grpo(Settings):
    """One GRPO phase. Defaults: GRPO as VerIPO trains it."""

    questions: Count | None = Field(None, description="questions a phase; None: all that are left")
    rollout_batch: Count = Field(
        64, description="questions sampled with one policy version [paper]"
    )
    train_batch: Count = Field(64, description="questions an optimiser step [paper: 128, then 64]")
    epochs: Count = Field(1, description="passes over a rollout batch")
    lr: Positive = 1e-6  # [paper]; 5e-7 in the second phase
    clip_low: Positive = 0.2
    clip_high: Positive = 0.2  # DAPO: 0.28
    ratio: Literal["token", "sequence"] = Field("token", description="'sequence' is GSPO")
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        "sequence_mean", description="'token_mean' is DAPO, 'constant' (over max_tokens) Dr.GRPO"
    )
    advantage: Literal["normalised", "centred"] = Field(
        "normalised", description="(r - mean) / std [mm-eureka]; 'centred' (r - mean) is Dr.GRPO"
    )
    kl_coef: Annotated[float, Field(ge=0)] = 0.0  # [mm-eureka]
    filter_groups: bool = Field(
        True, description="leave out groups that are all right or all wrong"
    )
    staleness: Literal[0, 1] = Field(
        0, description="1: sample the next rollout batch while the learner steps on this one [ours]"
    )
    truncated_importance: bool | None = Field(
        None,
        description="weigh tokens by min(learner / rollout worker, importance_cap); None: with "
        "staleness [ours]",
    )
    importance_cap: Annotated[float, Field(ge=1)] = 2.0  # [ours]

    @property
    def corrects_importance(self) -> bool:
        """Whether truncated importance sampling is on."""
        if self.truncated_importance is None:
            return self.staleness > 0
        return self.truncated_importance

    @property
    def steps_per_batch(self) -> int:
        """Optimiser steps on one rollout batch."""
        return self.epochs * -(-self.rollout_batch // self.train_batch)


class Dpo(Settings):
    """One DPO phase on the pairs of the phase before it."""

    batch_pairs: Count = 32  # [paper]
    lr: Positive = 5e-7  # [paper]
    beta: Positive = 0.1  # [paper]
    epochs: Count = 1
    nll_coef: Annotated[float, Field(ge=0)] = 0.0  # [ours]
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    shard_pairs: Count = Field(64, description="pairs a shard of the stream")
    shards_in_flight: Count = Field(4, description="backpressure: shards made but not yet read")


class GrpoPhase(Grpo):
    """`grpo` section with this phase's own values laid over it."""

    phase: Literal["grpo"] = "grpo"


class DpoPhase(Dpo):
    phase: Literal["dpo"] = "dpo"


class Lesson(Settings):
    """Demonstrations of the tiny world, written when the phase starts."""

    name: Literal["letters", "clean", "slipping", "noisy"]
    demonstrations: Count = 24_000
    clips: Count = 1024
    seed: int = 0


class Sft(Settings):
    """One sft phase, the cold start: imitate demonstrations. Defaults: [ours]."""

    demonstrations: Path | None = Field(
        None, description="file of questions with a `demonstration` each; None: data.train"
    )
    lesson: Lesson | None = Field(None, description="the tiny world's demonstrations instead")
    epochs: Count = 1
    steps: Count | None = Field(None, description="optimiser steps; None: as the epochs give")
    batch: Count = 32
    lr: Positive = 1e-5
    warmup_steps: Count = 10
    final_lr: Fraction = Field(0.1, description="share of lr that the linear decay ends at")
    conclusion: str = Field("<answer>", min_length=1, description="where the conclusion begins")
    answer_weight: Positive = Field(
        1.0, description="what a token from the last `conclusion` on counts; others count 1"
    )
    checkpoint_every: Count = 100


class SftPhase(Sft):
    phase: Literal["sft"] = "sft"


Phase = Annotated[SftPhase | GrpoPhase | DpoPhase, Field(discriminator="phase")]
