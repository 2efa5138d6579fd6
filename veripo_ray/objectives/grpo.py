"""The clipped policy-gradient loss of GRPO and of its relatives that differ by a setting.

    setting                                              algorithm
    ratio=token,    aggregation=sequence_mean            GRPO      arXiv 2402.03300, eq. 3
    ratio=token,    aggregation=token_mean, clip_high    DAPO      arXiv 2503.14476, eq. 8
    ratio=token,    aggregation=constant, centred        Dr.GRPO   arXiv 2503.20783, eq. 3
    ratio=sequence, aggregation=sequence_mean            GSPO      arXiv 2507.18071, eq. 5

Every term is a sum over the rows at hand divided by totals of the whole optimiser step, so losses
and statistics of micro-batches and ranks simply add up.

Two policies are behind the rollouts of a step: the one that sampled them (in another engine,
perhaps another precision, perhaps of older weights) and the *proximal* one, the learner's when it
began to learn from them. Without correction the two are taken for one: the ratio of the loss goes
to the recorded log-probabilities, and clipping bounds mismatch and progress together. With
truncated importance sampling the ratio goes to the proximal policy, so that clipping bounds
progress alone, and every term carries the weight min(proximal / sampling, cap):

    Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"
    (fengyao.notion.site/off-policy-rl), and the decoupled objective of AReaL (arXiv 2505.24298),
    there without the cap

A token has its own weight under ratio=token. Under ratio=sequence a response has one, the geometric
mean of its tokens', as GSPO's ratio is: where nothing is clipped or capped, weight times ratio is
GSPO's ratio to the sampling policy itself.
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
    sampling_logprobs_NR: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Share of the step's loss that these N responses (padded to R tokens) contribute.

    logprobs, old (what the ratio goes to), ref and sampling: float32 log-probabilities, any value
    where mask_NR (bool) is False. With `sampling`, those recorded at sampling, old is the proximal
    policy and truncated importance sampling corrects between the two; without, old is the policy
    that sampled. The KL term is not weighted.
    Returns a differentiable scalar and detached scalars that add up over micro-batches:
    clip_fraction, approx_kl (from the sampling policy), ratio, with a KL term kl (from the
    reference), and with correction importance (mean weight) and capped_fraction.
    Raises ValueError when kl_coef is set and no reference is given.
    """
    log_ratio_NR = _log_ratio(logprobs_NR, old_logprobs_NR, mask_NR, cfg)
    ratio_NR = log_ratio_NR.exp()
    clipped_NR = ratio_NR.clamp(1 - cfg.clip_low, 1 + cfg.clip_high)
    advantages_N1 = advantages_N[:, None]
    gain_NR, clipped_gain_NR = ratio_NR * advantages_N1, clipped_NR * advantages_N1
    loss_NR = -torch.minimum(gain_NR, clipped_gain_NR)
    per_token = {"clip_fraction": clipped_gain_NR < gain_NR, "ratio": ratio_NR}
    if sampling_logprobs_NR is not None:
        full_NR = _log_ratio(old_logprobs_NR, sampling_logprobs_NR, mask_NR, cfg).detach().exp()
        weight_NR = full_NR.clamp(max=cfg.importance_cap)
        loss_NR = loss_NR * weight_NR
        per_token |= {"importance": weight_NR, "capped_fraction": full_NR > cfg.importance_cap}
        log_ratio_NR = _log_ratio(logprobs_NR, sampling_logprobs_NR, mask_NR, cfg)
    per_token["approx_kl"] = log_ratio_NR.exp() - 1 - log_ratio_NR
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
