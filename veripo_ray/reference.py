"""The reference policy: a frozen copy that says how likely it finds a response."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from veripo_ray import config
from veripo_ray.errors import VeripoError
from veripo_ray.learner.learner import DTYPES
from veripo_ray.policy.grouped import Packed, micro_batches, response_logprobs
from veripo_ray.policy.lora import changes
from veripo_ray.policy.media import Media
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.records import Pair
from veripo_ray.weights import Manifest, Update, shapes_of, stale_error, to_tensor


class ReferencePolicy:
    """What `checkpoint` holds of the parts that learn, without an optimiser; cfg says which they
    are (`train_vision`), and gives dtype and token budget.

    version: that of the weights it holds, 0 for the checkpoint's own. rests: it shares its GPU with
    others, and waits in the machine's memory between calls. stale: an update began and has not
    succeeded; then it scores nothing.
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
        mine = self.policy.trainable().items()
        self._mine = {name: weight for name, weight in mine if changes(name, cfg.lora)}
        self._update: Update | None = None
        self.stale = False

    def begin_update(self, manifest: Manifest) -> None:
        """Make ready for weights of the learner. Raises CheckpointError, with nothing changed, when
        they are not those that this policy has."""
        self._update = Update(manifest, {n: tuple(w.shape) for n, w in self._mine.items()})

    def take(self, weights: Mapping[str, np.ndarray]) -> None:
        """A bucket of them. Raises CheckpointError for what was not announced."""
        if self._update is None:
            raise VeripoError("weights came without an update", fix="begin one first")
        self.stale = True
        self._update.arrived(shapes_of(weights))
        with torch.no_grad():
            for name, array in weights.items():
                self._mine[name].copy_(to_tensor(array))

    def finish_update(self) -> None:
        """All have come: the policy is a copy of the learner."""
        if self._update is None:
            raise VeripoError("no update has begun", fix="begin one first")
        self._update.require_whole()
        self.version, self.stale, self._update = self._update.version, False, None

    def load_weights(self, version: int, weights: Mapping[str, np.ndarray]) -> None:
        """A whole update from a snapshot."""
        self.begin_update(Manifest.of(version, weights))
        self.take(weights)
        self.finish_update()

    def logprobs(self, packed: Sequence[Packed]) -> list[list[np.ndarray]]:
        """Log-probabilities [R_i] float32 of every response."""
        if self.stale:
            raise stale_error(self.version, "reference")
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
