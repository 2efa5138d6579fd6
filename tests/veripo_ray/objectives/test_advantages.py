"""Advantages of one group's rewards."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.objectives.advantages import group_advantages, is_informative

REWARDS = st.lists(st.integers(0, 30).map(lambda n: n / 20), min_size=2, max_size=16)


@given(REWARDS)
def test_advantages_sum_to_zero(rewards):
    for mode in ("normalised", "centred"):
        assert abs(group_advantages(rewards, mode).sum()) < 1e-5


@given(REWARDS.filter(lambda r: max(r) > min(r)))
def test_normalised_advantages_have_unit_sample_deviation_and_keep_the_order(rewards):
    advantages = group_advantages(rewards)
    assert abs(advantages.std(ddof=1) - 1) < 1e-5
    assert (np.diff(advantages[np.argsort(rewards)]) >= 0).all()


@given(st.floats(0, 1.5), st.integers(1, 16))
def test_equal_rewards_have_no_advantage(reward, size):
    assert group_advantages([reward] * size).tolist() == [0.0] * size


def test_a_known_group():
    assert np.allclose(group_advantages([1.5, 0.5, 0.5, 1.5]), np.array([1, -1, -1, 1]) * 0.75**0.5)
    assert group_advantages([1.5, 0.5], "centred").tolist() == [0.5, -0.5]


def test_groups_that_are_all_right_or_all_wrong_are_not_informative():
    assert not is_informative([1.0, 1.0, 1.0])
    assert not is_informative([0.0, 0.0])
    assert is_informative([1.0, 0.0])
    assert is_informative([0.9, 1.0])
    assert is_informative([0.5, 0.5])  # partly right: the answers can still improve
