"""The curriculum leaves out the set share of the solved questions and no other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.curriculum import next_questions, phase_order


@given(
    st.lists(st.sampled_from([np.nan, 0.0, 0.9, 1.0]), max_size=30),
    st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    st.integers(0, 2**31),
)
def test_only_solved_questions_are_dropped_and_as_many_as_asked(means, share, seed):
    accuracy_N = np.array(means, np.float32)
    left = next_questions(accuracy_N, share, np.random.default_rng(seed)).tolist()
    gone = set(range(len(means))) - set(left)
    solved = {row for row, mean in enumerate(means) if mean == 1.0}
    assert gone <= solved
    assert len(gone) == int(share * len(solved) + 0.5)
    assert left == sorted(left)


def test_a_mean_of_ones_is_solved_however_it_was_rounded():
    thirds = np.float32([sum([1.0 / 3] * 3), np.mean(np.ones(7, np.float32)), 0.9])
    assert next_questions(thirds, 1.0, np.random.default_rng(0)).tolist() == [2]


def test_a_phase_asks_what_is_left_in_an_order_its_seed_decides():
    accuracy_N = np.array([1.0] * 10 + [np.nan] * 20, np.float32)
    first = phase_order(accuracy_N, drop_solved=0.8, seed=1).tolist()
    assert len(set(first)) == 22
    assert first == phase_order(accuracy_N, drop_solved=0.8, seed=1).tolist()
    assert first != phase_order(accuracy_N, drop_solved=0.8, seed=2).tolist()
    assert first != sorted(first)
