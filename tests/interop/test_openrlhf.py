"""Our losses against OpenRLHF 0.11.2's on the same tensors: values and gradients to 1e-6."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from veripo_ray.config import Dpo, Grpo
from veripo_ray.objectives.advantages import group_advantages
from veripo_ray.objectives.dpo import preference_loss
from veripo_ray.objectives.grpo import Totals, policy_loss

LENGTHS = [7, 1, 12, 3, 12, 5, 2, 9]
CLOSE = {"rtol": 0.0, "atol": 1e-6}


def rows(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log-probabilities, old ones, advantages and mask of 8 responses of uneven lengths."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    old = -3 * torch.rand(mask.shape, generator=generator)
    new = old + 0.4 * torch.randn(mask.shape, generator=generator)
    return new, old, torch.randn(len(LENGTHS), generator=generator), mask


def value_and_gradient(loss_of, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logprobs.clone().requires_grad_()
    loss = loss_of(leaf)
    loss.backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("clips", [(0.2, 0.2), (0.2, 0.28), (0.1, 0.4)])
@pytest.mark.parametrize(
    ("ratio", "aggregation"),
    [  # their GSPO always takes the mean of sequences, so the fourth combination has no oracle
        ("token", "token_mean"),
        ("token", "sequence_mean"),
        ("sequence", "sequence_mean"),
    ],
)
def test_policy_loss(openrlhf_losses, ratio, aggregation, clips):
    new, old, advantages, mask = rows()
    cfg = Grpo(ratio=ratio, aggregation=aggregation, clip_low=clips[0], clip_high=clips[1])
    totals = Totals.of(LENGTHS, max_tokens=16)
    theirs = openrlhf_losses.PolicyLoss(
        *clips,
        token_level_loss=aggregation == "token_mean",
        policy_loss_type="gspo" if ratio == "sequence" else "ppo",
    )
    ours = value_and_gradient(lambda x: policy_loss(x, old, advantages, mask, cfg, totals)[0], new)
    expected = value_and_gradient(
        lambda x: theirs(x, old, advantages[:, None].expand_as(x), mask.float())[0], new
    )
    torch.testing.assert_close(ours, expected, **CLOSE)


def test_policy_loss_of_micro_batches_with_global_denominators(openrlhf_losses):
    new, old, advantages, mask = rows(1)
    totals = Totals.of(LENGTHS, max_tokens=16)
    theirs = openrlhf_losses.PolicyLoss(token_level_loss=True)

    def ours_in_parts(x):
        cfg = Grpo(aggregation="token_mean")
        cuts = [slice(0, 3), slice(3, 8)]
        parts = [policy_loss(x[c], old[c], advantages[c], mask[c], cfg, totals)[0] for c in cuts]
        return sum(parts)

    def theirs_whole(x):
        return theirs(
            x, old, advantages[:, None].expand_as(x), mask.float(), batch_num_tokens=sum(LENGTHS)
        )[0]

    torch.testing.assert_close(
        value_and_gradient(ours_in_parts, new), value_and_gradient(theirs_whole, new), **CLOSE
    )


def test_statistics_of_the_policy_loss(openrlhf_losses):
    """Their clip fraction is ours. Their ppo_kl is the mean of -log ratio (k1), which can be
    negative; ours is k3, ratio - 1 - log ratio: k1 plus the mean of ratio - 1."""
    new, old, advantages, mask = rows(2)
    totals = Totals.of(LENGTHS, max_tokens=16)
    _, stats = policy_loss(new, old, advantages, mask, Grpo(), totals)
    _, clip_fraction, kl1, *_ = openrlhf_losses.PolicyLoss()(
        new, old, advantages[:, None].expand_as(new), mask.float()
    )
    torch.testing.assert_close(stats["clip_fraction"], clip_fraction, **CLOSE)
    torch.testing.assert_close(stats["approx_kl"], stats["ratio"] - 1 + kl1, **CLOSE)


def off_policy_rows() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    new, old, advantages, mask = rows(6)
    generator = torch.Generator().manual_seed(7)
    return new, old, old + 0.5 * torch.randn(old.shape, generator=generator), advantages, mask


@pytest.mark.parametrize("cap", [1.2, 2.0])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_truncated_importance_sampling(openrlhf_losses, aggregation, cap):
    """Theirs at the level of tokens, clipping the ratio, with 0 as the lower bound."""
    new, old, sampling, advantages, mask = off_policy_rows()
    cfg = Grpo(aggregation=aggregation, importance_cap=cap)
    totals = Totals.of(LENGTHS, max_tokens=16)
    theirs = openrlhf_losses.PolicyLoss(
        token_level_loss=aggregation == "token_mean",
        is_correction_level="token",
        is_correction_mode="clip",
        is_correction_threshold=(0.0, cap),
    )
    expected = value_and_gradient(
        lambda x: theirs(x, old, advantages[:, None].expand_as(x), mask.float(), sampling)[0], new
    )
    ours = value_and_gradient(
        lambda x: policy_loss(x, old, advantages, mask, cfg, totals, None, sampling)[0], new
    )
    torch.testing.assert_close(ours, expected, **CLOSE)
    _, stats = policy_loss(new, old, advantages, mask, cfg, totals, None, sampling)
    *_, capped = theirs(new, old, advantages[:, None].expand_as(new), mask.float(), sampling)
    torch.testing.assert_close(stats["capped_fraction"], capped, **CLOSE)


def test_importance_sampling_of_sequences(openrlhf_losses):
    """Under GSPO they have no weight beside the ratio: theirs goes to the sampling policy at once.
    Ours is weight times the ratio to the proximal policy: the same where nothing is clipped or
    capped, since both are geometric means over the tokens."""
    new, old, sampling, advantages, mask = off_policy_rows()
    wide = {"clip_low": 0.999, "clip_high": 1e3}
    cfg = Grpo(ratio="sequence", importance_cap=1e3, **wide)
    totals = Totals.of(LENGTHS, max_tokens=16)
    theirs = openrlhf_losses.PolicyLoss(
        *wide.values(), policy_loss_type="gspo", is_correction_level="token"
    )
    ours = value_and_gradient(
        lambda x: policy_loss(x, old, advantages, mask, cfg, totals, None, sampling)[0], new
    )
    expected = value_and_gradient(
        lambda x: theirs(x, old, advantages[:, None].expand_as(x), mask.float(), sampling)[0], new
    )
    torch.testing.assert_close(ours, expected, **CLOSE)


def test_kl_term(openrlhf_losses):
    """OpenRLHF adds `coef * k3` to the mean over tokens, in its trainer; we add it to each token,
    which is the same under token_mean."""
    from openrlhf.models.utils import compute_approx_kl

    new, old, advantages, mask = rows(3)
    reference = old - 0.3
    cfg = Grpo(aggregation="token_mean", kl_coef=0.05)
    totals = Totals.of(LENGTHS, max_tokens=16)

    def theirs(x):
        loss = openrlhf_losses.PolicyLoss()(x, old, advantages[:, None].expand_as(x), mask.float())
        kl = compute_approx_kl(x, reference, kl_estimator="k3")
        return loss[0] + 0.05 * (kl * mask).sum() / mask.sum()

    ours = value_and_gradient(
        lambda x: policy_loss(x, old, advantages, mask, cfg, totals, reference)[0], new
    )
    torch.testing.assert_close(ours, value_and_gradient(theirs, new), **CLOSE)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_loss(openrlhf_losses, beta, smoothing):
    generator = torch.Generator().manual_seed(4)
    policy = -40 * torch.rand(2, 16, generator=generator)
    reference = policy + 3 * torch.randn(2, 16, generator=generator)
    cfg = Dpo(beta=beta, label_smoothing=smoothing)
    theirs = openrlhf_losses.DPOLoss(beta, smoothing)
    ours = value_and_gradient(lambda x: preference_loss(*x, *reference, cfg, pairs=16)[0], policy)
    expected = value_and_gradient(lambda x: theirs(*x, *reference)[0], policy)
    torch.testing.assert_close(ours, expected, **CLOSE)
    _, stats = preference_loss(*policy, *reference, cfg, pairs=16)
    _, chosen_rewards, rejected_rewards = theirs(*policy, *reference)
    torch.testing.assert_close(stats["chosen_reward"], chosen_rewards.mean(), **CLOSE)
    torch.testing.assert_close(stats["rejected_reward"], rejected_rewards.mean(), **CLOSE)


def test_group_advantages():
    """OpenRLHF's group_norm (`(r - mean) / (r.std + 1e-9)`, inside its experience maker)."""
    rewards = torch.tensor([1.5, 0.5, 0.0, 1.1, 0.5, 1.5, 1.5, 0.6])
    theirs = (rewards - rewards.mean()) / (rewards.std() + 1e-9)
    torch.testing.assert_close(
        torch.from_numpy(group_advantages(rewards.tolist())), theirs, **CLOSE
    )
