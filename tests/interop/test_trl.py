"""Our losses against TRL 1.16's trainers' own loss code: values and gradients to 1e-6.

The loss methods are called without a trainer: a stand-in `self` holds the settings they read, and
the "model" returns the log-probabilities under test.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from veripo_ray.config import Dpo, Grpo
from veripo_ray.objectives.advantages import group_advantages
from veripo_ray.objectives.dpo import preference_loss
from veripo_ray.objectives.grpo import Totals, policy_loss

grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer")

LENGTHS = [7, 1, 12, 3, 12, 5, 2, 9]
MAX_TOKENS = 16
CLOSE = {"rtol": 0.0, "atol": 1e-6}
ALONE = SimpleNamespace(
    device="cpu",
    num_processes=1,
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, **_: x,
)


def grpo_self(cfg: Grpo, loss_type: str) -> SimpleNamespace:
    """What `GRPOTrainer._compute_loss` reads from its trainer, for one optimiser step at once."""
    return SimpleNamespace(
        loss_type=loss_type, importance_sampling_level=cfg.ratio, beta=cfg.kl_coef,
        epsilon_low=cfg.clip_low, epsilon_high=cfg.clip_high, max_completion_length=MAX_TOKENS,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        aux_loss_enabled=False, _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1, accelerator=ALONE,
        model=SimpleNamespace(training=True), _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda model, *_, **__: (model, model.detach(), None),
    )  # fmt: skip


def batch_of(new: Tensor, old, advantages, mask, **more: Tensor | None) -> dict:
    """What TRL's loss reads of a batch."""
    return {
        "prompt_ids": torch.zeros(len(new), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(new), 1, dtype=torch.long),
        "completion_ids": torch.zeros(new.shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "num_items_in_batch": mask.sum(),
        **more,
    }


def trl_grpo(cfg: Grpo, loss_type: str, new: Tensor, old, advantages, mask, reference) -> Tensor:
    inputs = batch_of(new, old, advantages, mask, ref_per_token_logps=reference)
    return grpo_trainer.GRPOTrainer._compute_loss(grpo_self(cfg, loss_type), new, inputs)


def value_and_gradient(loss_of, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logprobs.clone().requires_grad_()
    loss = loss_of(leaf)
    loss.backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("kl_coef", [0.0, 0.04])
@pytest.mark.parametrize(
    ("loss_type", "ratio", "aggregation", "clip_high"),
    [
        ("grpo", "token", "sequence_mean", 0.2),
        ("dapo", "token", "token_mean", 0.28),
        ("bnpo", "token", "token_mean", 0.2),
        ("dr_grpo", "token", "constant", 0.2),
        ("grpo", "sequence", "sequence_mean", 0.28),  # GSPO
        ("dapo", "sequence", "token_mean", 0.28),
        ("dr_grpo", "sequence", "constant", 0.2),
    ],
)
def test_policy_loss(loss_type, ratio, aggregation, clip_high, kl_coef):
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    old = -3 * torch.rand(mask.shape, generator=generator)
    new = old + 0.4 * torch.randn(mask.shape, generator=generator)
    reference = old + 0.3 * torch.randn(mask.shape, generator=generator)
    advantages = torch.randn(len(LENGTHS), generator=generator)
    cfg = Grpo(ratio=ratio, aggregation=aggregation, clip_high=clip_high, kl_coef=kl_coef)
    totals = Totals.of(LENGTHS, MAX_TOKENS)
    ours = value_and_gradient(
        lambda x: policy_loss(x, old, advantages, mask, cfg, totals, reference)[0], new
    )
    theirs = value_and_gradient(
        lambda x: trl_grpo(cfg, loss_type, x, old, advantages, mask, reference), new
    )
    torch.testing.assert_close(ours, theirs, **CLOSE)


def trl_correction(mode: str, cap: float, old: Tensor, sampling: Tensor, mask: Tensor) -> Tensor:
    """TRL's weight of each token (or response), as `_generate_and_score_completions` computes it
    between other things, in the few lines that matter here."""
    gap = (old - sampling) * mask
    if mode == "sequence_truncate":
        gap = gap.sum(-1, keepdim=True)
    return torch.clamp(gap.exp(), max=cap)


def trl_corrected(cfg: Grpo, loss_type: str, weight: Tensor, new, old, advantages, mask) -> Tensor:
    stand_in = grpo_self(cfg, loss_type)
    stand_in.use_vllm = stand_in.vllm_importance_sampling_correction = True
    inputs = batch_of(new, old, advantages, mask, importance_sampling_ratio=weight)
    return grpo_trainer.GRPOTrainer._compute_loss(stand_in, new, inputs)


@pytest.mark.parametrize("cap", [1.2, 3.0])
@pytest.mark.parametrize(
    ("loss_type", "aggregation"),
    [("grpo", "sequence_mean"), ("dapo", "token_mean"), ("dr_grpo", "constant")],
)
def test_truncated_importance_sampling(loss_type, aggregation, cap):
    """Their mode `token_truncate`."""
    new, old, sampling, advantages, mask = off_policy_rows(LENGTHS)
    cfg = Grpo(aggregation=aggregation, importance_cap=cap)
    totals = Totals.of(LENGTHS, MAX_TOKENS)
    weight = trl_correction("token_truncate", cap, old, sampling, mask)
    ours = value_and_gradient(
        lambda x: policy_loss(x, old, advantages, mask, cfg, totals, None, sampling)[0], new
    )
    theirs = value_and_gradient(
        lambda x: trl_corrected(cfg, loss_type, weight, x, old, advantages, mask), new
    )
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_importance_sampling_of_sequences():
    """Their mode `sequence_truncate` weighs a response by the ratio of its probability, ours (for
    GSPO) by its root of the length: theirs at a length of one, or to the power of one over it."""
    lengths = [4] * 6
    new, old, sampling, advantages, mask = off_policy_rows(lengths)
    cfg = Grpo(ratio="sequence", importance_cap=1.1)
    weight = trl_correction("sequence_truncate", 1.1**4, old, sampling, mask) ** (1 / 4)
    ours = value_and_gradient(
        lambda x: policy_loss(
            x, old, advantages, mask, cfg, Totals.of(lengths, MAX_TOKENS), None, sampling
        )[0],
        new,
    )
    theirs = value_and_gradient(
        lambda x: trl_corrected(cfg, "grpo", weight, x, old, advantages, mask), new
    )
    torch.testing.assert_close(ours, theirs, **CLOSE)


def off_policy_rows(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities of learner, proximal and sampling policy; advantages; mask."""
    generator = torch.Generator().manual_seed(8)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    old = -3 * torch.rand(mask.shape, generator=generator)
    new = old + 0.4 * torch.randn(mask.shape, generator=generator)
    sampling = old + 0.5 * torch.randn(mask.shape, generator=generator)
    return new, old, sampling, torch.randn(len(lengths), generator=generator), mask


def test_an_empty_response_counts_in_their_mean_of_sequences_and_not_in_ours():
    mask = torch.tensor([[True, True], [False, False]])
    new, old = torch.full((2, 2), -1.0), torch.full((2, 2), -1.1)
    advantages = torch.tensor([1.0, -1.0])
    ours, _ = policy_loss(new, old, advantages, mask, Grpo(), Totals.of([2, 0], MAX_TOKENS))
    theirs = trl_grpo(Grpo(), "grpo", new, old, advantages, mask, old)
    torch.testing.assert_close(ours / 2, theirs, **CLOSE)


def dpo_self(cfg: Dpo, loss_types: list[str], weights: list[float]) -> SimpleNamespace:
    """What `DPOTrainer._compute_loss` reads from its trainer."""
    return SimpleNamespace(
        beta=cfg.beta, label_smoothing=cfg.label_smoothing, loss_types=loss_types,
        loss_weights=weights, f_divergence_type="reverse_kl", ld_alpha=None, use_weighting=False,
        precompute_ref_logps=True, aux_loss_enabled=False, accelerator=ALONE,
        model=SimpleNamespace(training=True), _metrics={"train": defaultdict(list)},
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip


def trl_dpo(cfg, loss_types, weights, policy_2BR: Tensor, reference_2B: Tensor, mask_2BR) -> Tensor:
    """policy: per-token log-probabilities, chosen rows first, one prompt token before them."""
    prompted = torch.cat([torch.zeros(len(mask_2BR), 1), mask_2BR], dim=1)
    outputs = SimpleNamespace(
        log_probs=policy_2BR * mask_2BR,
        entropy=torch.zeros_like(policy_2BR),
        mean_logits=torch.zeros_like(policy_2BR),
        is_top1=torch.zeros_like(policy_2BR, dtype=torch.bool),
    )
    chosen, rejected = reference_2B.chunk(2)
    inputs = {
        "input_ids": torch.zeros(prompted.shape, dtype=torch.long),
        "attention_mask": torch.ones(prompted.shape, dtype=torch.long),
        "completion_mask": prompted.long(),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    stand_in = dpo_self(cfg, loss_types, weights)
    return dpo_trainer.DPOTrainer._compute_loss(stand_in, lambda **_: outputs, inputs, False)


def dpo_rows() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    mask = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).float()
    policy = -2 * torch.rand(mask.shape, generator=generator)
    reference = (policy * mask).sum(1) + 2 * torch.randn(len(LENGTHS), generator=generator)
    return policy, reference, mask


def ours_dpo(cfg: Dpo, policy: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    sums = (policy * mask).sum(1)
    lengths = mask.sum(1).chunk(2)[0]
    pairs = len(mask) // 2
    return preference_loss(
        *sums.chunk(2), *reference.chunk(2), cfg, pairs=pairs, chosen_lengths_B=lengths
    )[0]


def test_dpo_loss():
    policy, reference, mask = dpo_rows()
    cfg = Dpo(beta=0.3)
    ours = value_and_gradient(lambda x: ours_dpo(cfg, x, reference, mask), policy)
    theirs = value_and_gradient(
        lambda x: trl_dpo(cfg, ["sigmoid"], [1.0], x, reference, mask), policy
    )
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_smoothed_dpo_loss():
    """TRL's sigmoid loss ignores label_smoothing; its `robust` loss subtracts the flipped term and
    rescales. Ours is cDPO's mixture, their `aot` formula without the sorting: one pair has none."""
    policy, reference, mask = dpo_rows()
    rows = torch.tensor([0, 4])
    policy, reference, mask = policy[rows], reference[rows], mask[rows]
    cfg = Dpo(beta=0.3, label_smoothing=0.1)
    ours = value_and_gradient(lambda x: ours_dpo(cfg, x, reference, mask), policy)
    theirs = value_and_gradient(lambda x: trl_dpo(cfg, ["aot"], [1.0], x, reference, mask), policy)
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_likelihood_term():
    """Theirs is the mean over all chosen tokens, ours the mean of each response's mean; the two
    agree where the chosen responses are of one length."""
    policy, reference, mask = dpo_rows()
    mask[: len(mask) // 2] = (torch.arange(12) < 6).float()
    reference[: len(mask) // 2] = -5.0
    cfg = Dpo(beta=0.3, nll_coef=0.2)
    ours = value_and_gradient(lambda x: ours_dpo(cfg, x, reference, mask), policy)
    theirs = value_and_gradient(
        lambda x: trl_dpo(cfg, ["sigmoid", "sft"], [1.0, 0.2], x, reference, mask), policy
    )
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_group_advantages():
    """TRL adds 1e-4 to the sample deviation: at a deviation of 0.5 ours is 2e-4 larger."""
    rewards = torch.tensor([1.5, 0.5, 0.0, 1.1, 0.5, 1.5, 1.5, 0.6])
    deviation = grpo_trainer.nanstd(rewards)
    theirs = (rewards - rewards.mean()) / (deviation + 1e-4)
    ours = torch.from_numpy(group_advantages(rewards.tolist()))
    torch.testing.assert_close(ours * deviation / (deviation + 1e-4), theirs, **CLOSE)
