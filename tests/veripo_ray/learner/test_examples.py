"""Examples are dealt out and cut so that ranks stay in step."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from veripo_ray.learner.examples import TrainPair, rounds

lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=20)


def pairs(sizes) -> list[TrainPair]:
    def ids(count: int) -> np.ndarray:
        return np.zeros(count, np.int32)

    return [
        TrainPair(f"p{i}", ids(prompt), ids(response), ids(0), 0.0, 0.0)
        for i, (prompt, response) in enumerate(sizes)
    ]


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 5), st.integers(1, 200))
def test_every_example_with_tokens_is_trained_once_and_ranks_have_equal_rounds(
    sizes, world_size, budget
):
    examples = pairs(sizes)
    dealt = [rounds(examples, rank, world_size, budget) for rank in range(world_size)]
    assert len(set(map(len, dealt))) == 1
    trained = sorted(index for rank in dealt for part in rank for index in part)
    assert trained == [i for i, (_, response) in enumerate(sizes) if response]


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 200))
def test_a_micro_batch_stays_within_the_budget_unless_it_is_one_example(sizes, budget):
    examples = pairs(sizes)
    for part in rounds(examples, 0, 1, budget):
        cost = sum(examples[i].packed().tokens for i in part)
        assert cost <= budget or len(part) == 1
