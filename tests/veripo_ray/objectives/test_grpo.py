"""The GRPO family of losses: hand-computed values, and independence of how a step is cut."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veripo_ray.config import Grpo
from veripo_ray.objectives.grpo import Totals, policy_loss

VARIANTS = [
    Grpo(ratio=ratio, aggregation=aggregation, kl_coef=kl, clip_high=0.28)
    for ratio in ("token", "sequence")
    for aggregation in ("token_mean", "sequence_mean", "constant")
    for kl in (0.0, 0.1)
]


def batch(lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    old = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return {
        "logprobs": old + 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64),
        "old": old,
        "ref": old + 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64),
        "advantages": torch.randn(shape[0], generator=generator, dtype=torch.float64),
        "mask": torch.arange(shape[1]) < torch.tensor(lengths)[:, None],
    }


def loss_of(rows: dict[str, torch.Tensor], cfg: Grpo, totals: Totals):
    reference = rows["ref"] if cfg.kl_coef else None
    return policy_loss(
        rows["logprobs"], rows["old"], rows["advantages"], rows["mask"], cfg, totals, reference
    )


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=2, max_size=8).filter(any),
    cut=st.integers(1, 7),
    cfg=st.sampled_from(VARIANTS),
)
def test_a_step_is_the_sum_of_its_micro_batches(lengths, cut, cfg):
    rows = batch(lengths, seed=len(lengths))
    totals = Totals.of(lengths, max_tokens=9)
    whole, whole_stats = loss_of(rows, cfg, totals)
    parts = [
        loss_of({k: v[i : i + cut] for k, v in rows.items()}, cfg, totals)
        for i in range(0, len(lengths), cut)
    ]
    assert math.isclose(whole.item(), sum(loss.item() for loss, _ in parts), abs_tol=1e-12)
    for name, value in whole_stats.items():
        assert math.isclose(value.item(), sum(s[name].item() for _, s in parts), abs_tol=1e-6)


def test_three_means_of_the_same_terms():
    ones = torch.ones(2, 3)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages = torch.tensor([1.0, -2.0])
    totals = Totals.of([3, 1], max_tokens=10)

    def value(aggregation):
        cfg = Grpo(aggregation=aggregation)
        return policy_loss(-ones, -ones, advantages, mask, cfg, totals)[0].item()

    assert math.isclose(value("token_mean"), (-3 + 2) / 4)
    assert math.isclose(value("sequence_mean"), (-1 + 2) / 2)
    assert math.isclose(value("constant"), (-3 + 2) / 20, rel_tol=1e-6)


def test_the_first_step_on_policy_is_the_plain_policy_gradient():
    rows = batch([4, 2])
    old = rows["old"].clone().requires_grad_()
    loss, stats = policy_loss(
        old, rows["old"], rows["advantages"], rows["mask"], Grpo(aggregation="token_mean"),
        Totals(6, 2, 4),
    )  # fmt: skip
    loss.backward()
    assert torch.allclose(old.grad, -rows["advantages"][:, None] * rows["mask"] / 6)
    assert stats["clip_fraction"] == 0
    assert stats["approx_kl"] == 0
    assert math.isclose(stats["ratio"].item(), 1.0)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "moves"),
    [(0.3, 1.0, False), (0.3, -1.0, True), (-0.3, 1.0, True), (-0.3, -1.0, False)],
)
def test_a_clipped_token_has_no_gradient(log_ratio, advantage, moves):
    logprobs = torch.tensor([[log_ratio]], requires_grad=True)
    loss, stats = policy_loss(
        logprobs, torch.zeros(1, 1), torch.tensor([advantage]), torch.tensor([[True]]), Grpo(),
        Totals(1, 1, 1),
    )  # fmt: skip
    loss.backward()
    assert bool(logprobs.grad != 0) is moves
    assert stats["clip_fraction"].item() == float(not moves)


def test_sequence_ratio_is_the_geometric_mean_of_its_tokens():
    logprobs = torch.tensor([[0.1, 0.2, 9.0]])
    mask = torch.tensor([[True, True, False]])
    _, stats = policy_loss(
        logprobs, torch.zeros(1, 3), torch.ones(1), mask, Grpo(ratio="sequence"), Totals(2, 1, 3)
    )
    assert math.isclose(stats["ratio"].item(), math.exp(0.15), rel_tol=1e-6)


def test_extreme_ratios_and_padding_give_finite_gradients():
    logprobs = torch.tensor([[0.0, -math.inf], [-0.1, 5.0]], requires_grad=True)
    old = torch.tensor([[-500.0, math.nan], [-700.0, 3.0]])
    mask = torch.tensor([[True, False], [True, False]])
    cfg = Grpo(kl_coef=0.1)
    loss, _ = policy_loss(
        logprobs, old, torch.tensor([1.0, -1.0]), mask, cfg, Totals(2, 2, 2), old.clone()
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logprobs.grad).all()


def test_the_kl_term_pulls_towards_the_reference():
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    reference = torch.tensor([[-2.0]])
    loss, stats = policy_loss(
        logprobs, logprobs.detach(), torch.zeros(1), torch.tensor([[True]]), Grpo(kl_coef=0.5),
        Totals(1, 1, 1), reference,
    )  # fmt: skip
    loss.backward()
    assert math.isclose(stats["kl"].item(), math.exp(-1) - 1 + 1, rel_tol=1e-6)
    assert math.isclose(loss.item(), 0.5 * math.exp(-1), rel_tol=1e-6)
    assert logprobs.grad.item() > 0  # descending lowers a probability above the reference's


def test_a_kl_term_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="reference"):
        loss_of(batch([2]) | {"ref": None}, Grpo(kl_coef=0.1), Totals(2, 1, 2))


# --- truncated importance sampling


def corrected(rows: dict[str, torch.Tensor], cfg: Grpo, totals: Totals, sampling: torch.Tensor):
    """Loss, gradient and statistics with `old` as the proximal policy."""
    leaf = rows["logprobs"].clone().requires_grad_()
    loss, stats = policy_loss(
        leaf, rows["old"], rows["advantages"], rows["mask"], cfg, totals, rows["ref"], sampling
    )
    loss.backward()
    return loss.detach(), leaf.grad, stats


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=2, max_size=8).filter(any),
    cfg=st.sampled_from(VARIANTS),
)
def test_rollouts_of_the_proximal_policy_itself_need_no_correction(lengths, cfg):
    """Bit for bit: neutral where learner and rollout worker are one policy."""
    rows = batch(lengths, seed=len(lengths))
    totals = Totals.of(lengths, max_tokens=9)
    loss, gradient, stats = corrected(rows, cfg, totals, rows["old"].clone())
    leaf = rows["logprobs"].clone().requires_grad_()
    plain, _ = loss_of(rows | {"logprobs": leaf}, cfg, totals)
    plain.backward()
    assert torch.equal(loss, plain.detach())
    assert torch.equal(gradient, leaf.grad)
    assert math.isclose(stats["importance"].item(), 1.0, rel_tol=1e-6)
    assert stats["capped_fraction"] == 0


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=8),
    cut=st.integers(1, 7),
    cap=st.sampled_from([1.0, 1.3, 5.0]),
    cfg=st.sampled_from(VARIANTS),
)
def test_a_corrected_step_is_the_sum_of_its_micro_batches(lengths, cut, cap, cfg):
    cfg = cfg.model_copy(update={"importance_cap": cap})
    rows, sampling = batch(lengths, seed=1), batch(lengths, seed=2)["logprobs"]
    totals = Totals.of(lengths, max_tokens=9)
    whole, gradient, stats = corrected(rows, cfg, totals, sampling)
    places = [slice(i, i + cut) for i in range(0, len(lengths), cut)]
    parts = [
        corrected({k: v[place] for k, v in rows.items()}, cfg, totals, sampling[place])
        for place in places
    ]
    assert math.isclose(whole.item(), sum(loss.item() for loss, _, _ in parts), abs_tol=1e-12)
    assert torch.allclose(gradient, torch.cat([part for _, part, _ in parts]))
    for name, value in stats.items():
        assert math.isclose(value.item(), sum(s[name].item() for *_, s in parts), abs_tol=1e-6)
    assert 0 < stats["importance"] <= cap * (1 + 1e-6)


@pytest.mark.parametrize(("gap", "weight"), [(math.log(1.5), 1.5), (math.log(3), 2.0), (-9, None)])
def test_a_token_weighs_how_much_likelier_the_proximal_policy_finds_it_up_to_the_cap(gap, weight):
    """With one step a batch the ratio is 1, so the gradient is -weight * advantage."""
    leaf = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    sampling = torch.tensor([[-1.0 - gap, -1.0]])
    loss, stats = policy_loss(
        leaf, leaf.detach(), torch.tensor([2.0]), torch.tensor([[True, True]]),
        Grpo(importance_cap=2.0), Totals(2, 1, 2), None, sampling,
    )  # fmt: skip
    loss.backward()
    weight = math.exp(gap) if weight is None else weight
    assert torch.allclose(leaf.grad, torch.tensor([[-weight, -1.0]]))
    assert math.isclose(stats["importance"].item(), (weight + 1) / 2, rel_tol=1e-6)
    assert stats["capped_fraction"].item() == (0.5 if math.exp(gap) > 2 else 0.0)


def test_under_a_sequence_ratio_a_response_has_one_weight():
    leaf = torch.tensor([[-1.0, -2.0, 7.0]], requires_grad=True)
    sampling = torch.tensor([[-1.4, -1.8, 3.0]])
    mask = torch.tensor([[True, True, False]])
    cfg = Grpo(ratio="sequence", aggregation="token_mean")
    loss, stats = policy_loss(
        leaf, leaf.detach(), torch.tensor([1.0]), mask, cfg, Totals(2, 1, 3), None, sampling
    )
    loss.backward()
    weight = math.exp((0.4 - 0.2) / 2)
    assert torch.allclose(leaf.grad, torch.tensor([[-weight / 2, -weight / 2, 0.0]]))
    assert math.isclose(stats["importance"].item(), weight, rel_tol=1e-6)


def test_the_kl_term_is_not_weighted():
    rows = batch([3, 2], seed=4)
    rows["advantages"] = torch.zeros(2, dtype=torch.float64)
    totals, cfg = Totals.of([3, 2], 9), Grpo(kl_coef=0.1)
    loss, _, _ = corrected(rows, cfg, totals, rows["old"] - 1.0)
    assert torch.equal(loss, loss_of(rows, cfg, totals)[0])


def test_extreme_weights_and_padding_give_finite_gradients():
    logprobs = torch.tensor([[0.0, -math.inf]], requires_grad=True)
    loss, stats = policy_loss(
        logprobs, torch.tensor([[-0.1, math.nan]]), torch.tensor([1.0]),
        torch.tensor([[True, False]]), Grpo(), Totals(1, 1, 2), None,
        torch.tensor([[-900.0, math.nan]]),
    )  # fmt: skip
    loss.backward()
    assert torch.isfinite(logprobs.grad).all()
    assert stats["importance"] == 2.0
    assert torch.isfinite(stats["approx_kl"])


def test_correction_comes_with_staleness_unless_it_is_set():
    assert not Grpo().corrects_importance
    assert Grpo(staleness=1).corrects_importance
    assert not Grpo(staleness=1, truncated_importance=False).corrects_importance
    assert Grpo(truncated_importance=True).corrects_importance
    assert Grpo(rollout_batch=8, train_batch=4, epochs=3).steps_per_batch == 6


def test_empty_responses_do_not_count():
    assert Totals.of([0, 3, 2], max_tokens=8) == Totals(tokens=5, responses=2, max_tokens=8)
