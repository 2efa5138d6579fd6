"""r_a and r_f are those of the paper and its published code, and no failure becomes a reward."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.errors import DataError, ScoringError
from veripo_ray.records import Kind, Question
from veripo_ray.scoring.rewards import accuracy, check_gold, mean_relative_accuracy, reward


def respond(answer: str) -> str:
    return f"<think> because </think> <answer> {answer} </answer>"


def question(kind: Kind, gold: str) -> Question:
    return Question(id="q1", text="?", kind=kind, gold=gold)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        *(("B", 1), ("$B$", 1), ("b", 1), ("(B)", 1)),
        *(("B. red car", 0), ("A", 0), ("A B", 0), ("", 0), (r"\boxed{B}", 0), ("42", 0)),
    ],
)
def test_a_choice_is_right_when_its_letter_alone_occurs(answer, value):
    assert reward(question(Kind.CHOICE, "B"), respond(answer)).accuracy == value


@pytest.mark.parametrize(
    ("predicted", "gold", "value"),
    [(9.5, 10, 1.0), (9, 10, 0.9), (12, 10, 0.6), (5, 10, 0.1), (4.9, 10, 0.0), (10, 10, 1.0)],
)
def test_relative_accuracy_gives_the_published_examples(predicted, gold, value):
    assert mean_relative_accuracy(predicted, gold) == value


def test_relative_accuracy_is_defined_for_zero_and_for_negative_gold():
    assert mean_relative_accuracy(0, 0) == 1.0
    assert mean_relative_accuracy(0.001, 0) == 0.0
    assert mean_relative_accuracy(-9, -10) == 0.9
    assert mean_relative_accuracy(9, -10) == 0.0


@given(st.floats(-1e12, 1e12), st.floats(0.001, 1e12))
def test_relative_accuracy_is_the_published_codes(predicted, gold):
    published = np.linspace(0.5, 0.95, 10)
    expected = (abs(predicted - gold) / gold <= 1 - published).mean()
    assert mean_relative_accuracy(predicted, gold) == pytest.approx(expected)


def test_a_number_is_compared_and_an_unreadable_one_is_wrong():
    assert reward(question(Kind.NUMERIC, "10"), respond("$9$ m")).accuracy == 0.9
    assert reward(question(Kind.NUMERIC, "10"), respond("9 or 10")).accuracy == 0.0


def test_maths_is_compared_by_value():
    assert reward(question(Kind.MATH, r"\frac{1}{2}"), respond("$0.5$")).accuracy == 1.0
    assert reward(question(Kind.MATH, r"\frac{1}{2}"), respond("$0.6$")).accuracy == 0.0
    assert reward(question(Kind.MATH, r"x^2+1"), respond("1 + x^2")).accuracy == 1.0


def test_the_format_is_worth_a_half_whatever_the_answer():
    asked = question(Kind.CHOICE, "B")
    assert reward(asked, respond("A")).total == 0.5
    assert reward(asked, respond("B")).total == 1.5
    assert reward(asked, "<answer> B </answer>").total == 1.0
    assert reward(asked, "B").total == 0.0


@pytest.mark.parametrize(
    ("kind", "gold"),
    [
        *((Kind.CHOICE, "red"), (Kind.CHOICE, "K"), (Kind.NUMERIC, "many")),
        *((Kind.NUMERIC, "1 or 2"), (Kind.MATH, "???")),
    ],
)
def test_a_gold_answer_that_cannot_be_read_is_a_data_error_naming_the_question(kind, gold):
    with pytest.raises(DataError, match="question q1") as caught:
        reward(question(kind, gold), respond("B"))
    assert gold in caught.value.problem
    assert caught.value.fix


def test_a_gold_letter_beyond_the_options_is_a_data_error():
    check_gold(Kind.CHOICE, "B", name="q1", options=2)
    with pytest.raises(DataError, match="q1"):
        check_gold(Kind.CHOICE, "C", name="q1", options=2)


def test_an_answer_that_cannot_be_worked_out_in_time_is_an_error_and_no_reward():
    with pytest.raises(ScoringError):
        accuracy(Kind.MATH, r"\frac{1}{2}", "$9^{9^{9^9}}$", name="q1")


@given(st.text(max_size=300), st.sampled_from([(Kind.CHOICE, "B"), (Kind.NUMERIC, "3")]))
def test_any_text_has_a_reward(text, asked):
    given = reward(question(*asked), text)
    assert 0 <= given.accuracy <= 1
    assert given.format in (0, 0.5)
