"""Direct preference optimisation on pairs (arXiv 2305.18290, equation 7)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from veripo_ray.config import Dpo


def preference_loss(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    ref_chosen_B: Tensor,
    ref_rejected_B: Tensor,
    cfg: Dpo,
    *,
    pairs: int,
    chosen_lengths_B: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Share of the step's loss that these B pairs contribute.

    Arguments are log-probabilities summed over a response's tokens, float32. pairs: those of the
    whole optimiser step, over all micro-batches and ranks, so that results add up. label_smoothing
    is the share of pairs believed to be swapped (cDPO). nll_coef adds the chosen response's
    negative log-likelihood per token (as RPO, arXiv 2404.19733), for which it needs the lengths.
    Returns a differentiable scalar and detached scalars that add up: accuracy (implicit reward
    prefers the chosen), margin, chosen_reward, rejected_reward and, with the NLL term, nll.
    """
    chosen_B = cfg.beta * (policy_chosen_B - ref_chosen_B)
    rejected_B = cfg.beta * (policy_rejected_B - ref_rejected_B)
    margin_B = chosen_B - rejected_B
    kept, swapped = 1 - cfg.label_smoothing, cfg.label_smoothing
    loss_B = -kept * logsigmoid(margin_B) - swapped * logsigmoid(-margin_B)
    per_pair = {
        "accuracy": (margin_B > 0).float(),
        "margin": margin_B,
        "chosen_reward": chosen_B,
        "rejected_reward": rejected_B,
    }
    if cfg.nll_coef > 0:
        if chosen_lengths_B is None:
            raise ValueError("nll_coef > 0 needs the lengths of the chosen responses")
        per_pair["nll"] = nll_B = -policy_chosen_B / chosen_lengths_B.clamp(min=1)
        loss_B = loss_B + cfg.nll_coef * nll_B
    stats = {name: value.detach().sum() / pairs for name, value in per_pair.items()}
    return loss_B.sum() / pairs, stats
