"""The curriculum leaves out the set share of the solved questions and no other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.curriculum import next_questions, phase_order
from veripo_ray.records import Kind, Question

QUESTIONS = [Question(id=f"q{n}", text="?", kind=Kind.NUMERIC, gold="1") for n in range(30)]


@given(
    st.dictionaries(st.sampled_from([q.id for q in QUESTIONS]), st.sampled_from([0.0, 0.9, 1.0])),
    st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    st.integers(0, 2**31),
)
def test_only_solved_questions_are_dropped_and_as_many_as_asked(means, share, seed):
    left = next_questions(QUESTIONS, means, share, np.random.default_rng(seed))
    gone = {q.id for q in QUESTIONS} - {q.id for q in left}
    solved = {name for name, mean in means.items() if mean == 1.0}
    assert gone <= solved
    assert len(gone) == int(share * len(solved) + 0.5)
    assert [q.id for q in left] == [q.id for q in QUESTIONS if q.id not in gone]


def test_a_phase_asks_what_is_left_in_an_order_its_seed_decides():
    means = dict.fromkeys([q.id for q in QUESTIONS[:10]], 1.0)
    first = phase_order(QUESTIONS, means, drop_solved=0.8, seed=1)
    assert len(first) == 22
    assert first == phase_order(QUESTIONS, means, drop_solved=0.8, seed=1)
    assert first != phase_order(QUESTIONS, means, drop_solved=0.8, seed=2)
    assert first != sorted(first)
