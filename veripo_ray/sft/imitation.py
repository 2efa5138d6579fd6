"""One optimiser step of imitation: weighted cross entropy of demonstrated responses.

A demonstration is a group of one, so the learner's forward, its ranks and its checkpoints are those
of the other phases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from veripo_ray.learner import Learner
from veripo_ray.learner.examples import Example
from veripo_ray.learner.objectives import Stats
from veripo_ray.policy.grouped import Packed
from veripo_ray.policy.media import Features, Modality


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What the learner imitates: prompt_ids [P] int32, expanded; response [R] int32 with its stop
    token; weights [R] float32."""

    id: str
    prompt_ids: np.ndarray
    response: np.ndarray
    weights: np.ndarray

    def packed(self, features: tuple = ()) -> Packed:
        return Packed(self.prompt_ids, features, (self.response,))


@dataclass(frozen=True, slots=True)
class Pixels:
    """A clip or image before the tower, for a tower that learns: patches [N, values] float32, as
    its processor makes them, and what `Features` says besides."""

    modality: Modality
    patches: np.ndarray
    grid_thw: tuple[int, int, int]
    seconds_per_grid: float
    rows: int
    timestamps: tuple[float, ...] = ()


class Imitator(Learner):
    """A learner that imitates. Its version counts the steps it has made."""

    def sft_step(
        self,
        examples: Sequence[Demonstration],
        media: Mapping[str, tuple[Features | Pixels, ...]],
        lr: float,
    ) -> Stats:
        """One optimiser step on `examples`; `media`, by id, need hold only this rank's: features,
        or pixels where the tower learns. Returns the step's metrics, equal on all ranks."""
        # To the learner a demonstration is one more example, and pixels are features: `_seen` makes
        # them so before they are read.
        groups = cast("Sequence[Example]", examples)
        features = cast("Mapping[str, tuple[Features, ...]]", media)
        stats = self._accumulate(groups, features, Imitation(examples))
        tokens = sum(len(example.response) for example in examples)
        return self._update(stats, lr) | {"tokens": tokens}

    def _loss(self, indices: list[int], packed: list[Packed], *rest: Any) -> Tensor:
        return super()._loss(indices, self._seen(packed), *rest)

    def _seen(self, packed: list[Packed]) -> list[Packed]:
        """Every `Pixels` replaced by what the tower makes of it, gradients included."""
        items = cast("list[Features | Pixels]", [item for row in packed for item in row.features])
        unseen = [item for item in items if isinstance(item, Pixels)]
        seen = {id(item): features for item, features in self._encode(unseen)}
        return [
            replace(group, features=tuple(seen.get(id(item), item) for item in group.features))
            for group in packed
        ]

    def _encode(self, items: Sequence[Pixels]) -> list[tuple[Pixels, Features]]:
        pairs = []
        for modality in {item.modality for item in items}:
            chosen = [item for item in items if item.modality == modality]
            device, dtype = self.policy.device, self.policy.dtype
            patches = torch.from_numpy(np.concatenate([item.patches for item in chosen]))
            grids = torch.tensor([item.grid_thw for item in chosen], device=device)
            values = self.policy.encode(patches.to(device, dtype), grids, modality)
            for item, rows in zip(chosen, values, strict=True):
                rest = (item.grid_thw, item.seconds_per_grid, item.timestamps)
                pairs.append((item, Features(modality, rows, *rest)))
        return pairs


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
