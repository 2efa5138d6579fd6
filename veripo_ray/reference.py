"""The reference policy: a frozen copy that says how likely it finds a response."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from veripo_ray import config
from veripo_ray.learner.learner import DTYPES
from veripo_ray.policy.grouped import Packed, micro_batches, response_logprobs
from veripo_ray.policy.lora import changes
from veripo_ray.policy.media import Media
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.records import Pair
from veripo_ray.weights import load_into


class ReferencePolicy:
    """What `checkpoint` holds of the parts that learn, without an optimiser; cfg says which they
    are (`train_vision`), and gives dtype and token budget.

    version: that of the weights it holds, 0 for the checkpoint's own. rests: it shares its GPU with
    others, and waits in the machine's memory between calls.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        cfg: config.Learner,
        *,
        device: torch.device | str = "cpu",
        temperature: float = 1.0,
        rests: bool = False,
    ) -> None:
        self.cfg = cfg
        self._works_on, self._rests_on = device, "cpu" if rests else device
        self.temperature = temperature
        self.version = 0
        self.policy = QwenVL.load(
            checkpoint, dtype=DTYPES[cfg.dtype], device=self._rests_on, tower=cfg.train_vision
        )

    def load_weights(self, version: int, weights: Mapping[str, np.ndarray]) -> None:
        """Become a copy of the learner. Raises CheckpointError when the weights do not fit."""
        mine = self.policy.trainable().items()
        load_into({name: w for name, w in mine if changes(name, self.cfg.lora)}, weights)
        self.version = version

    def logprobs(self, packed: Sequence[Packed]) -> list[list[np.ndarray]]:
        """Log-probabilities [R_i] float32 of every response."""
        scores: list[list[np.ndarray]] = []
        with torch.no_grad(), self._awake():
            for indices in micro_batches(packed, self.cfg.micro_batch_tokens):
                rows = [packed[index] for index in indices]
                part = response_logprobs(self.policy, rows, temperature=self.temperature)
                scores += [[row.cpu().numpy() for row in group] for group in part]
        return scores

    @contextmanager
    def _awake(self) -> Iterator[None]:
        self.policy.model.to(self._works_on)
        try:
            yield
        finally:
            self.policy.model.to(self._rests_on)
            if self._rests_on != self._works_on:
                torch.cuda.empty_cache()  # no-op where CUDA was never used

    def attach(
        self, pairs: Sequence[Pair], features: Mapping[str, tuple[Media, ...]]
    ) -> list[Pair]:
        """The same pairs with `reference_logprob` filled in on both sides; features by pair id.

        What a pair held there before is replaced, so doing it twice changes nothing.
        """
        packed = [Packed(pair.prompt_ids, features[pair.id], _sides(pair)) for pair in pairs]
        scores = self.logprobs(packed)
        return [with_reference(pair, score) for pair, score in zip(pairs, scores, strict=True)]


def _sides(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    return pair.chosen.token_ids, pair.rejected.token_ids


def with_reference(pair: Pair, scores: Sequence[np.ndarray]) -> Pair:
    """The pair with `reference_logprob` on both sides; scores: of chosen and rejected, [R] each."""
    chosen, rejected = (float(score.sum(dtype=np.float64)) for score in scores)
    return pair.model_copy(
        update={
            "chosen": pair.chosen.model_copy(update={"reference_logprob": chosen}),
            "rejected": pair.rejected.model_copy(update={"reference_logprob": rejected}),
        }
    )
