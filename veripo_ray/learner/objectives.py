"""From log-probabilities of a micro-batch to its share of the step's loss, for GRPO and for DPO."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from veripo_ray import config
from veripo_ray.errors import ConfigError
from veripo_ray.learner.examples import TrainGroup, TrainPair
from veripo_ray.objectives.dpo import preference_loss
from veripo_ray.objectives.grpo import Totals, policy_loss

Stats = dict[str, float]


class GrpoObjective:
    """GRPO's loss of some of a step's groups, and the log-probability gap of each.

    gaps: largest |learner - rollout worker| of a token, by group id, of the groups seen so far.
    """

    def __init__(
        self, groups: Sequence[TrainGroup], cfg: config.Grpo, max_tokens: int | None
    ) -> None:
        if max_tokens is None and cfg.aggregation == "constant":
            raise ConfigError(
                "aggregation 'constant' divides by the sampling limit, which the learner lacks",
                fix="give the learner max_tokens (rollout.max_tokens)",
            )
        lengths = (len(response) for group in groups for response in group.responses)
        self.groups = groups
        self.cfg = cfg
        self.totals = Totals.of(lengths, max_tokens or 0)
        self.gaps: dict[str, float] = {}

    def __call__(self, indices: Sequence[int], scores: list[list[Tensor]]) -> tuple[Tensor, Stats]:
        """Loss (differentiable) and statistics, both to be summed over micro-batches and ranks."""
        groups = [self.groups[index] for index in indices]
        logprobs_NR, mask_NR = _padded([row for group in scores for row in group])
        old_NR = _like([row for group in groups for row in group.old_logprobs], logprobs_NR)
        advantages_N = np.concatenate([group.advantages for group in groups])
        reference_NR = None
        if self.cfg.kl_coef > 0 and all(group.ref_logprobs is not None for group in groups):
            reference = [row for group in groups for row in group.ref_logprobs or ()]
            reference_NR = _like(reference, logprobs_NR)
        self._measure_gaps(groups, logprobs_NR, old_NR, mask_NR)
        sampling_NR = None
        if self.cfg.corrects_importance:
            sampling_NR, old_NR = old_NR, self._proximal(groups, logprobs_NR)
        loss, tensors = policy_loss(
            logprobs_NR,
            old_NR,
            torch.from_numpy(advantages_N).to(logprobs_NR),
            mask_NR,
            self.cfg,
            self.totals,
            reference_NR,
            sampling_NR,
        )
        surprise = -(logprobs_NR.detach() * mask_NR).sum() / self.totals.tokens
        return loss, _floats({"loss": loss, "entropy": surprise, **tensors})

    @staticmethod
    def _proximal(groups: Sequence[TrainGroup], logprobs_NR: Tensor) -> Tensor:
        """Log-probabilities of the learner that began this rollout batch: the present ones, unless
        they were recorded before the first of several steps."""
        recorded = [row for group in groups for row in group.proximal_logprobs or ()]
        return _like(recorded, logprobs_NR) if recorded else logprobs_NR.detach()

    def _measure_gaps(
        self, groups: Sequence[TrainGroup], new_NR: Tensor, old_NR: Tensor, mask_NR: Tensor
    ) -> None:
        gap_N = torch.where(mask_NR, (new_NR.detach() - old_NR).abs(), 0.0).amax(1)
        sizes = [len(group.responses) for group in groups]
        for group, gap_G in zip(groups, gap_N.split(sizes), strict=True):
            self.gaps[group.id] = float(gap_G.max())


class DpoObjective:
    """DPO's loss of some of a step's pairs."""

    def __init__(self, pairs: Sequence[TrainPair], cfg: config.Dpo) -> None:
        self.pairs = pairs
        self.cfg = cfg

    def __call__(self, indices: Sequence[int], scores: list[list[Tensor]]) -> tuple[Tensor, Stats]:
        """Loss (differentiable) and statistics, both to be summed over micro-batches and ranks."""
        pairs = [self.pairs[index] for index in indices]
        chosen_B = torch.stack([chosen.sum() for chosen, _ in scores])
        rejected_B = torch.stack([rejected.sum() for _, rejected in scores])
        loss, tensors = preference_loss(
            chosen_B,
            rejected_B,
            chosen_B.new_tensor([pair.reference_chosen for pair in pairs]),
            chosen_B.new_tensor([pair.reference_rejected for pair in pairs]),
            self.cfg,
            pairs=len(self.pairs),
            chosen_lengths_B=chosen_B.new_tensor([len(pair.chosen) for pair in pairs]),
        )
        return loss, _floats({"loss": loss, **tensors})


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Vectors [R_i] as [N, R] and the mask of what is real."""
    lengths_N = torch.tensor([len(row) for row in rows], device=rows[0].device)
    padded_NR = pad_sequence(list(rows), batch_first=True)
    steps_R = torch.arange(padded_NR.shape[1], device=padded_NR.device)
    return padded_NR, steps_R < lengths_N[:, None]


def _like(rows: Sequence[np.ndarray], target_NR: Tensor) -> Tensor:
    """Recorded vectors in the same shape, dtype and place as `target_NR`."""
    filled = np.zeros(target_NR.shape, np.float32)
    for place, row in zip(filled, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(filled).to(target_NR.device)


def _floats(tensors: dict[str, Tensor]) -> Stats:
    return {name: float(value.detach()) for name, value in tensors.items()}
