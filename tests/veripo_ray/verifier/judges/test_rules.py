"""The rules judge reads conclusions as a person would, and is exact on the tiny world."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.records import Kind
from veripo_ray.scoring import answers
from veripo_ray.tinyworld import chains, world
from veripo_ray.verifier.judges import Case, Rules, conclusions

CARS = ("red car", "blue car", "dark red car", "green van")


def case(kind: Kind, thinking: str, answer: str, options: tuple[str, ...] = ()) -> Case:
    return Case("?", kind, options, thinking, answer)


def concluded(thinking: str, kind: Kind, options: tuple[str, ...] = ()) -> str | None:
    found = conclusions.find(thinking, kind, options)
    return found.value if found else None


@pytest.mark.parametrize(
    ("thinking", "letter"),
    [
        ("f1 red so red B", "B"),
        ("so A wait f1 red so red B", "B"),
        ("f1 red so A wait", "A"),
        ("so red B f3 blue A", "B"),
        ("The answer is B.", "B"),
        ("so the answer is (c)", "C"),
        ("Therefore, option C.", "C"),
        ("Option B is wrong. D is correct.", "D"),
        ("A is the correct answer", "A"),
        ("The answer is B, not C.", "B"),
        ("The answer is not C, it is B", "B"),
        ("At first the answer is A. However, the answer is **D**", "D"),
        (r"thus \boxed{C}", "C"),
        ("I choose option D because it is green", "D"),
        ("Thus the correct choice is the dark red car", "C"),
        ("Therefore the man takes the blue car.", "B"),
        ("The answer is A or B", None),
        ("so it may be B or C", None),
        ("so A man walks. The blue car stops.", None),
        ("so the red car passes the blue car", None),
        ("so", None),
        ("", None),
    ],
)
def test_the_letter_a_chain_concludes(thinking, letter):
    assert concluded(thinking, Kind.CHOICE, CARS) == letter


@pytest.mark.parametrize(
    ("thinking", "number"),
    [
        ("f1 red 1 f2 red 2 so 2", "2"),
        ("so 3 f4 red 4", "3"),
        ("so 3 wait f1 red 1 so 1", "1"),
        ("therefore there are three red cars", "3"),
        ("so 2 + 1 = 3.", "3"),
        ("The answer is 12.5 meters", "12.5"),
        (r"\boxed{\frac{3}{4}}", "0.75"),
        ("the total is 4 of 5", "4"),
        ("so this one is red", None),
        ("in total 5 cars, 3 red", None),
        ("so so so", None),
    ],
)
def test_the_number_a_chain_concludes(thinking, number):
    assert concluded(thinking, Kind.NUMERIC) == number


@pytest.mark.parametrize(
    ("thinking", "formula"),
    [
        *(("Thus $x^2+1$ it is", "x^2+1"), (r"so \boxed{\frac{3}{4}}.", r"\frac{3}{4}")),
        *(("so x = 3", "3"), ("so it is", None), (r"\boxed{x", "x")),
    ],
)
def test_the_formula_a_chain_concludes(thinking, formula):
    assert concluded(thinking, Kind.MATH) == formula


@pytest.mark.parametrize(
    ("kind", "thinking", "answer", "consistent"),
    [
        (Kind.CHOICE, "so red A", "A", True),
        (Kind.CHOICE, "so red A", "$A$", True),
        (Kind.CHOICE, "so red A", "B", False),
        (Kind.CHOICE, "so red A", "only A", True),
        (Kind.CHOICE, "so red A", "the red car", True),
        (Kind.CHOICE, "so red A", "A or B", None),
        (Kind.NUMERIC, "so 3", "3", True),
        (Kind.NUMERIC, "so 3", "$3.0$", True),
        (Kind.NUMERIC, "so 3", "4", False),
        (Kind.NUMERIC, "the answer is 12.4", "12", True),
        (Kind.NUMERIC, "the answer is 12.6", "12", False),
        (Kind.NUMERIC, "so 3", "several", None),
        (Kind.MATH, "so $\\frac{1}{2}$", "$0.5$", True),
        (Kind.MATH, "so $\\frac{1}{2}$", "$0.6$", False),
        (Kind.MATH, "so $\\frac{1}{2}$", "???", None),
        (Kind.MATH, "so $\\frac{1}{2}$", "1" * 2000, None),
    ],
)
def test_conclusion_and_answer_are_compared_as_the_question_asks(
    kind, thinking, answer, consistent
):
    (judgement,) = Rules().judge_now([case(kind, thinking, answer, CARS)])
    assert judgement.consistent is consistent
    assert judgement.error is None
    assert judgement.evidence is not None


def test_a_chain_without_a_conclusion_is_undecided_and_no_error():
    (judgement,) = Rules().judge_now([case(Kind.NUMERIC, "f1 red f2 blue", "3")])
    assert (judgement.consistent, judgement.error) == (None, None)
    assert "no conclusion" in judgement.reason


def test_a_comparison_that_fails_is_an_error_of_its_case_alone():
    hard = case(Kind.MATH, "so $9^{9^{9^9}}$", "$2$")
    failed, fine = Rules().judge_now([hard, case(Kind.MATH, "so $2$", "$2$")])
    assert failed.consistent is None
    assert failed.error
    assert fine.consistent is True


def test_the_judge_is_exact_on_the_tiny_worlds_demonstrations():
    rng, scenes = Random(1), world.scenes(1, held_out=False)
    for _, scene in zip(range(100), scenes, strict=False):
        for task in world.TASKS:
            asked = world.ask(scene, task, rng)
            text = chains.demonstrate(scene, asked, chains.NOISY, rng)
            kind = Kind.CHOICE if asked.options else Kind.NUMERIC
            parts = answers.split(text)
            words = parts.thinking_text.split()
            one = case(kind, parts.thinking_text, parts.answer_text, asked.options)
            (judgement,) = Rules().judge_now([one])
            assert judgement.consistent is (words[-1] == parts.answer_text.strip())


@given(
    st.lists(
        st.sampled_from(
            [
                *("so", "f1", "red", "A", "B", "3", "wait", ".", "$", "\\boxed{", "}"),
                *("the answer is", "or", "not", "=", "option", "I", "a"),
            ]
        )
    ).map(" ".join)
    | st.text(),
    st.text(max_size=60),
    st.sampled_from([Kind.CHOICE, Kind.NUMERIC]),
)
def test_any_thinking_gets_a_judgement_with_evidence_inside_it(thinking, answer, kind):
    (judgement,) = Rules().judge_now([case(kind, thinking, answer, CARS)])
    if judgement.evidence is not None:
        start, end = judgement.evidence
        assert 0 <= start < end <= len(thinking)


@pytest.mark.parametrize("piece", ["so ", "so A or B ", "\\boxed{", "A is ", "not ", "$"])
def test_a_megabyte_of_cues_is_read(piece):
    conclusions.find(piece * (2**20 // len(piece)), Kind.CHOICE, CARS)
