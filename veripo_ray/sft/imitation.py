"""One optimiser step of imitation: weighted cross entropy of demonstrated responses.

A demonstration is a group of one, so the learner's forward, its ranks and its checkpoints are those
of the other phases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from veripo_ray.learner import Learner
from veripo_ray.learner.examples import Example
from veripo_ray.learner.objectives import Stats
from veripo_ray.policy.grouped import Packed
from veripo_ray.policy.media import Media


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What the learner imitates: prompt_ids [P] int32, expanded; response [R] int32 with its stop
    token; weights [R] float32."""

    id: str
    prompt_ids: np.ndarray
    response: np.ndarray
    weights: np.ndarray

    def packed(self, features: tuple[Media, ...] = ()) -> Packed:
        return Packed(self.prompt_ids, features, (self.response,))


class Imitator(Learner):
    """A learner that imitates. Its version counts the steps it has made."""

    def sft_step(
        self,
        examples: Sequence[Demonstration],
        media: Mapping[str, tuple[Media, ...]],
        lr: float,
    ) -> Stats:
        """One optimiser step on `examples`; `media`, by id, need hold only this rank's: features,
        or frames where the tower learns. Returns the step's metrics, equal on all ranks."""
        groups = cast("Sequence[Example]", examples)  # to the learner it is one more example
        self.policy.set_dropout(active=True)
        stats = self._accumulate(groups, media, Imitation(examples))
        self.policy.set_dropout(active=False)
        tokens = sum(len(example.response) for example in examples)
        return self._update(stats, lr) | {"tokens": tokens}


class Imitation:
    """Cross entropy of some of a step's demonstrations: its sum over tokens, times their weights,
    over the weight of the whole step."""

    def __init__(self, examples: Sequence[Demonstration]) -> None:
        self.examples = examples
        self.total = float(sum(example.weights.sum() for example in examples))

    def __call__(self, indices: Sequence[int], scores: list[list[Tensor]]) -> tuple[Tensor, Stats]:
        """Loss (differentiable) and statistics, both to be summed over micro-batches and ranks."""
        logprobs_N = torch.cat([logprobs_R for [logprobs_R] in scores])
        weights_N = np.concatenate([self.examples[index].weights for index in indices])
        loss = -(logprobs_N * logprobs_N.new_tensor(weights_N)).sum() / self.total
        return loss, {"loss": float(loss.detach())}
