"""The clipped policy-gradient loss of GRPO and of its relatives that differ by a setting.

    setting                                              algorithm
    ratio=token,    aggregation=sequence_mean            GRPO      arXiv 2402.03300, eq. 3
    ratio=token,    aggregation=token_mean, clip_high    DAPO      arXiv 2503.14476, eq. 8
    ratio=token,    aggregation=constant, centred        Dr.GRPO   arXiv 2503.20783, eq. 3
    ratio=sequence, aggregation=sequence_mean            GSPO      arXiv 2507.18071, eq. 5

Every term is a sum over the rows at hand divided by totals of the whole optimiser step, so losses
and statistics of micro-batches and ranks simply add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from veripo_ray.config import Grpo

MAX_LOG_RATIO = 20.0  # beyond it exp() is a constant: no overflow, hence no NaN gradient


@dataclass(frozen=True, slots=True)
class Totals:
    """Denominators of one optimiser step, over all its micro-batches and ranks.

    tokens: response tokens; responses: those with at least one token; max_tokens: the sampling
    limit, Dr.GRPO's constant.
    """

    tokens: int
    responses: int
    max_tokens: int

    @classmethod
    def of(cls, lengths: Iterable[int], max_tokens: int) -> Totals:
        """Totals of responses of these lengths."""
        filled = [length for length in lengths if length > 0]
        return cls(sum(filled), len(filled), max_tokens)


def policy_loss(
    logprobs_NR: Tensor,
    old_logprobs_NR: Tensor,
    advantages_N: Tensor,
    mask_NR: Tensor,
    cfg: Grpo,
    totals: Totals,
    ref_logprobs_NR: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Share of the step's loss that these N responses (padded to R tokens) contribute.

    logprobs, old (of the sampling policy) and ref: float32 log-probabilities, any value where
    mask_NR (bool) is False. Returns a differentiable scalar and detached scalars that add up over
    micro-batches: clip_fraction, approx_kl (from the sampling policy), ratio and, with a KL term,
    kl (from the reference). Raises ValueError when kl_coef is set and no reference is given.
    """
    log_ratio_NR = _log_ratio(logprobs_NR, old_logprobs_NR, mask_NR, cfg)
    ratio_NR = log_ratio_NR.exp()
    clipped_NR = ratio_NR.clamp(1 - cfg.clip_low, 1 + cfg.clip_high)
    advantages_N1 = advantages_N[:, None]
    gain_NR, clipped_gain_NR = ratio_NR * advantages_N1, clipped_NR * advantages_N1
    loss_NR = -torch.minimum(gain_NR, clipped_gain_NR)
    per_token = {
        "clip_fraction": clipped_gain_NR < gain_NR,
        "approx_kl": ratio_NR - 1 - log_ratio_NR,
        "ratio": ratio_NR,
    }
    if cfg.kl_coef > 0:
        if ref_logprobs_NR is None:
            raise ValueError("kl_coef > 0 needs the reference's log-probabilities")
        per_token["kl"] = kl_NR = _k3(logprobs_NR, ref_logprobs_NR, mask_NR)
        loss_NR = loss_NR + cfg.kl_coef * kl_NR
    stats = {
        name: (value.detach() * mask_NR).sum() / totals.tokens for name, value in per_token.items()
    }
    return _aggregate(loss_NR, mask_NR, cfg, totals), stats


def _log_ratio(new_NR: Tensor, old_NR: Tensor, mask_NR: Tensor, cfg: Grpo) -> Tensor:
    """log of the importance ratio of each token, or of its whole response (length-normalised)."""
    log_ratio_NR = torch.where(mask_NR, new_NR - old_NR, 0.0)
    if cfg.ratio == "sequence":
        lengths_N1 = mask_NR.sum(1, keepdim=True).clamp(min=1)
        log_ratio_NR = (log_ratio_NR.sum(1, keepdim=True) / lengths_N1).expand_as(log_ratio_NR)
    return log_ratio_NR.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _k3(new_NR: Tensor, ref_NR: Tensor, mask_NR: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy, reference) at each token; never negative."""
    gap_NR = torch.where(mask_NR, ref_NR - new_NR, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return gap_NR.exp() - 1 - gap_NR


def _aggregate(loss_NR: Tensor, mask_NR: Tensor, cfg: Grpo, totals: Totals) -> Tensor:
    masked_N = (loss_NR * mask_NR).sum(1)
    if cfg.aggregation == "token_mean":
        return masked_N.sum() / totals.tokens
    if cfg.aggregation == "constant":
        return masked_N.sum() / (totals.responses * totals.max_tokens)
    return (masked_N / mask_NR.sum(1).clamp(min=1)).sum() / totals.responses
