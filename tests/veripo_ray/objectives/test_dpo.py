"""DPO on pairs: known values, symmetry, and independence of how a step is cut."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veripo_ray.config import Dpo
from veripo_ray.objectives.dpo import preference_loss

LOGPROBS = st.lists(
    st.tuples(*[st.floats(-60, 0, width=32)] * 4),
    min_size=1,
    max_size=6,
)


def columns(rows: list[tuple[float, ...]]) -> list[torch.Tensor]:
    return list(torch.tensor(rows, dtype=torch.float64).T)


def test_an_untrained_policy_has_the_loss_of_a_coin():
    same = torch.tensor([-3.0, -4.0])
    loss, stats = preference_loss(same, same, same, same, Dpo(), pairs=2)
    assert math.isclose(loss.item(), math.log(2), rel_tol=1e-6)
    assert stats["margin"] == 0
    assert stats["accuracy"] == 0  # a tie is no preference


@settings(deadline=None)
@given(LOGPROBS)
def test_swapping_the_sides_flips_the_margin_and_the_smoothing(rows):
    chosen, rejected, ref_chosen, ref_rejected = columns(rows)
    cfg, swapped = Dpo(label_smoothing=0.25), Dpo(label_smoothing=0.25)
    loss, stats = preference_loss(chosen, rejected, ref_chosen, ref_rejected, cfg, pairs=len(rows))
    other, other_stats = preference_loss(
        rejected, chosen, ref_rejected, ref_chosen, swapped, pairs=len(rows)
    )
    # -logsigmoid(m) - -logsigmoid(-m) = -m, so the two sides differ by the margin alone
    margin = stats["margin"].item()
    assert math.isclose(margin, -other_stats["margin"].item(), abs_tol=1e-9)
    assert math.isclose(other.item() - loss.item(), (1 - 2 * 0.25) * margin, abs_tol=1e-9)
    assert math.isclose(stats["chosen_reward"], other_stats["rejected_reward"], abs_tol=1e-9)


@settings(deadline=None)
@given(rows=LOGPROBS, cut=st.integers(1, 5))
def test_a_step_is_the_sum_of_its_micro_batches(rows, cut):
    cfg = Dpo(nll_coef=0.2, label_smoothing=0.1)
    lengths = torch.arange(1, len(rows) + 1)

    def loss_of(part: slice):
        return preference_loss(
            *(column[part] for column in columns(rows)), cfg,
            pairs=len(rows), chosen_lengths_B=lengths[part],
        )  # fmt: skip

    whole, stats = loss_of(slice(None))
    parts = [loss_of(slice(i, i + cut)) for i in range(0, len(rows), cut)]
    assert math.isclose(whole.item(), sum(loss.item() for loss, _ in parts), abs_tol=1e-9)
    for name, value in stats.items():
        assert math.isclose(value.item(), sum(s[name].item() for _, s in parts), abs_tol=1e-6)


def test_the_gradient_raises_the_chosen_and_lowers_the_rejected():
    chosen, rejected = (
        torch.tensor([-5.0], requires_grad=True),
        torch.tensor([-5.0], requires_grad=True),
    )
    reference = torch.tensor([-5.0])
    loss, _ = preference_loss(chosen, rejected, reference, reference, Dpo(beta=0.1), pairs=1)
    loss.backward()
    assert math.isclose(chosen.grad.item(), -0.05, rel_tol=1e-6)
    assert math.isclose(rejected.grad.item(), 0.05, rel_tol=1e-6)


def test_the_likelihood_term_is_per_token_of_the_chosen_response():
    chosen = torch.tensor([-8.0, -3.0])
    zeros = torch.zeros(2)
    plain, _ = preference_loss(chosen, zeros, chosen, zeros, Dpo(), pairs=2)
    with_nll, stats = preference_loss(
        chosen, zeros, chosen, zeros, Dpo(nll_coef=0.5), pairs=2,
        chosen_lengths_B=torch.tensor([4, 3]),
    )  # fmt: skip
    assert stats["nll"] == 1.5
    assert math.isclose(with_nll.item() - plain.item(), 0.75, rel_tol=1e-6)


def test_a_likelihood_term_without_lengths_is_refused():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="lengths"):
        preference_loss(one, one, one, one, Dpo(nll_coef=0.1), pairs=1)
