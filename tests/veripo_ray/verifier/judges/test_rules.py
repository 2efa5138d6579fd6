"""The rules judge reads conclusions as a person would, and is exact on the tiny world."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.records import Kind
from veripo_ray.scoring import answers
from veripo_ray.tinyworld import chains, vocabulary, world
from veripo_ray.verifier.judges import Case, Rules, conclusions
from veripo_ray.verifier.judges.tinyworld import TinyWorld

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
        ("So it is not the red car.", None),
        ("So it isn't A.", None),
        ("so option B is wrong", None),
        ("I don't think B is correct.", None),
        ("The answer is A. Wait, something is odd here. So it is not A.", None),
        ("So it is not the red car, it is the blue car.", "B"),
        ("So the blue car is not on the road, while the green van is.", None),
        ("He waits so that A can pass.", None),
        ("That leaves B.", "B"),
        ("He rings and leaves a note. The driver waits for it.", None),
        ("Option D describes this.", "D"),
        ("A is wrong, B is out, and it cannot be C.", "D"),
        ("It is neither A nor B, and C can be ruled out.", "D"),
        ("It is neither A nor B.", None),
    ],
)
def test_the_letter_a_chain_concludes(thinking, letter):
    assert concluded(thinking, Kind.CHOICE, CARS) == letter


@pytest.mark.parametrize(
    ("thinking", "letter"),
    [
        ("So the answer is A. Hmm, let me check: the van is seen at first.", None),
        ("So the answer is A. Let me check: the van is gone. Yes, that fits.", "A"),
        ("So the answer is A. Wait, the light was on. It must be the green van after all.", "D"),
        ("So the answer is A. Wait, the light was on. If it was off, it is the green van.", None),
        ("so red B f3 red f4 red f5 red", "B"),
        ("so B, as the man who leaves is in the red car", "B"),
        ("so B. The man who leaves is in the red car", None),
        ("So the red car. But then the road is dry. The second one to pass is the blue car.", "B"),
    ],
)
def test_a_conclusion_that_is_reconsidered_must_be_confirmed_or_replaced(thinking, letter):
    assert concluded(thinking, Kind.CHOICE, CARS) == letter


@pytest.mark.parametrize(
    ("thinking", "options", "letter"),
    [
        ("So only lamp B goes out.", ("Lamp C", "Lamp A", "Lamp B"), "C"),
        ("So the lamp closest to B goes out.", ("Lamp C", "Lamp A", "Lamp B"), None),
        ("Lamp B is the only one that goes out.", ("Lamp C", "Lamp A", "Lamp B"), None),
        ("Option B is the only one that fits.", ("Lamp C", "Lamp A", "Lamp B"), "B"),
        ("So there are three of them.", ("2", "3", "4"), "B"),
        ("So it falls on the chair.", ("On the table", "On the chair"), "B"),
        ("So it is on the chair.", ("On the chair", "Under the chair"), "A"),
        ("So yes, they did.", ("No", "Yes"), "B"),
        ("So it does not move.", ("It moves", "It does not move"), "B"),
        ("so C", (), "C"),
    ],
)
def test_options_are_known_by_their_words(thinking, options, letter):
    assert concluded(thinking, Kind.CHOICE, options) == letter


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
        ("The answer is between 2 and 3", None),
        ("The answer is 2 or 3", None),
        ("The total is 3 + 4, which is 7", "7"),
        ("so nine minus three is six", "6"),
        ("so there are twenty-five cars", "25"),
        ("so about eight hundred people", "800"),
        ("so two hundred and fifty people", "250"),
        ("so 7 of the 10 cups", "7"),
        ("So it shows 5 degrees below zero", "-5"),
        ("So it is minus five.", "-5"),
        ("So he jumps twice.", "2"),
        ("so half a dozen eggs", "6"),
        ("so two and a half hours", "2.5"),
        ("so at 1:30 the bell rings", None),
        ("so \u017fix cars", None),
        ("So there are 4 so far. Then 2 more come in.", None),
        ("So there are 4 here. Then one more comes in. That makes 5.", "5"),
        ("The answer is 2. Let me check the end: it says 2:1. The count is corrected to 3.", "3"),
    ],
)
def test_the_number_a_chain_concludes(thinking, number):
    assert concluded(thinking, Kind.NUMERIC) == number


@pytest.mark.parametrize(
    ("thinking", "formula"),
    [
        *(("Thus $x^2+1$ it is", "x^2+1"), (r"so \boxed{\frac{3}{4}}.", r"\frac{3}{4}")),
        *(("so x = 3", "3"), ("so it is", None), (r"\boxed{x", "x")),
        ("Thus the roots are $2$ and $3$", None),
        (r"Thus \( x = 4 \)", "x = 4"),
        ("so there are three of them. It goes on", None),
        ("The probability is $1/2$.", "1/2"),
        ("With $x = 2$ in it, the two roots turn out to be one and three.", None),
        (r"so it is 3\sqrt{2}", None),
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
        (Kind.MATH, "so $x = 5$", "$5$", True),
        (Kind.MATH, "so $\\frac{1}{2} \\cdot 24 = 12$", "$12$", True),
        (Kind.MATH, "so $\\frac{1}{2} \\cdot 24 = 12$", "$24$", False),
        (Kind.MATH, "so $???$", "$5$", None),
    ],
)
def test_conclusion_and_answer_are_compared_as_the_question_asks(
    kind, thinking, answer, consistent
):
    (judgement,) = Rules().judge_now([case(kind, thinking, answer, CARS)])
    assert judgement.consistent is consistent
    assert judgement.error is None
    assert judgement.evidence is not None


@pytest.mark.parametrize(
    ("question", "thinking", "answer", "consistent"),
    [
        ("How long, in centimeters?", "so 1.2 meters", "120", True),
        ("How long, in centimeters?", "so 1.2 meters", "1.2", False),
        ("How long, in meters?", "so 1.2 meters", "1.2 m", True),
        ("How long?", "so 90 seconds", "1.5 min", True),
        ("How long, in meters?", "so 5 seconds", "5", None),
        ("How fast, in m/s?", "so 5 m/s", "5", True),
        ("How large, in square meters?", "so 12 square meters", "12", True),
    ],
)
def test_numbers_are_compared_in_the_unit_that_is_asked_for(question, thinking, answer, consistent):
    asked = Case(question, Kind.NUMERIC, (), thinking, answer)
    (judgement,) = Rules().judge_now([asked])
    assert judgement.consistent is consistent


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


LOOK_ALIKES = ("\uff22", "\u0412", "A\u200d", "\u200bB", "\u0410", "\uff13", "\u0663", "\u00b2")
ODD = ("\u017fo", "\u017fix", "\u0130", "\u0131s", "\ud800", "\x00", "10^{999}", "9" * 400, "1e999")
WORDS = st.sampled_from(
    [
        *("so", "f1", "red", "A", "B", "3", "wait", ".", "$", "\\boxed{", "}", "car", "yes"),
        *("the answer is", "or", "not", "=", "option", "I", "a", "cannot be", "three", "hundred"),
        *("minus", "\\(", "\\)", "m", "cm", "\n", "is wrong", "out of", "below zero", "2:30"),
        *LOOK_ALIKES,
        *ODD,
    ]
)


@given(
    st.lists(WORDS).map(" ".join) | st.lists(WORDS).map("".join) | st.text(),
    st.lists(WORDS, max_size=4).map(" ".join) | st.text(max_size=60),
    st.sampled_from([Kind.CHOICE, Kind.NUMERIC]),
    st.sampled_from([CARS, (), ("A", "B"), ("", " "), ("3", "three")]),
    st.text(max_size=20) | st.just("how long, in meters?"),
)
def test_any_thinking_gets_a_judgement_with_evidence_inside_it(
    thinking, answer, kind, options, question
):
    (judgement,) = Rules().judge_now([Case(question, kind, options, thinking, answer)])
    assert judgement.error is None
    if judgement.evidence is not None:
        start, end = judgement.evidence
        assert 0 <= start < end <= len(thinking)


@given(st.lists(WORDS).map(" ".join))
def test_any_thinking_is_searched_for_a_formula(thinking):
    found = conclusions.find(thinking, Kind.MATH, ())
    assert found is None or found.value


@pytest.mark.parametrize("look_alike", ["\uff22", "\u0412", "\u0410", "\u200b\u0412"])
def test_a_look_alike_of_a_letter_is_no_option(look_alike):
    for thinking, answer in ((f"so {look_alike}", "B"), ("so B", look_alike)):
        (judgement,) = Rules().judge_now([case(Kind.CHOICE, thinking, answer, CARS)])
        assert judgement.consistent is not False


def test_a_long_answer_is_no_answer_to_a_question_of_choice():
    (judgement,) = Rules().judge_now([case(Kind.CHOICE, "so B", "B. " + "x " * 2**19, CARS)])
    assert judgement.consistent is None


def test_large_options_are_read_too():
    options = ("red " * 2**16, "blue " * 2**16, "green")
    assert concluded("so it is green", Kind.CHOICE, options) == "C"


def test_evidence_lies_in_the_whole_thinking_however_long_it_is():
    thinking = "x " * 2**18 + "so B"
    found = conclusions.find(thinking, Kind.CHOICE, CARS)
    assert thinking[slice(*found.span)] == "so B"


PIECES = (
    *("so ", "so A or B ", "\\boxed{", "A is ", "not ", "$", "A, B, ", "not A, B and C, ", "(A"),
    *("so 1 and ", "1,", "5 hundred ", "minus ", "\\( ", "is ", "wait ", "n't be be be ", "*", " "),
    *("so 3. ", "\n", "the red car ", "\\frac{", "\u200d", "let me ", "a"),
)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("piece", PIECES)
def test_a_megabyte_of_cues_is_read(piece, kind):
    conclusions.find(piece * (2**20 // len(piece)), kind, CARS)


@pytest.mark.parametrize("piece", PIECES)
def test_the_time_of_reading_is_bounded_by_the_end_of_the_text(piece):
    """What lies far from the end is not even looked at."""
    end = "x " * 2**16 + "so B"
    far, near = (conclusions.find(front + end, Kind.CHOICE, CARS) for front in (piece * 1000, ""))
    assert far.value == near.value == "B"


@given(
    st.lists(
        st.tuples(st.sampled_from(vocabulary.FRAMES), st.sampled_from(vocabulary.COLOURS)).map(
            " ".join
        )
        | st.tuples(
            st.just("so"), st.sampled_from(vocabulary.COLOURS), st.sampled_from("ABCD")
        ).map(" ".join)
        | st.sampled_from("ABCD").map("so {} wait".format),
        max_size=12,
    ),
    st.sampled_from("ABCD"),
    st.sampled_from("ABCD"),
)
def test_whatever_a_chain_of_the_tiny_world_does_before_its_last_word_is_what_counts(
    clauses, letter, answer
):
    """The tiny world's own judge, which parses the language, says the same."""
    chain = " ".join([*clauses, "so", letter])
    one = case(Kind.CHOICE, chain, answer, vocabulary.COLOURS)
    (judgement,) = Rules().judge_now([one])
    (other,) = asyncio.run(TinyWorld().judge([one]))
    assert judgement.consistent is other.consistent is (letter == answer)
