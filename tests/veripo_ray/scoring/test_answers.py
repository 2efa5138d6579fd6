"""Responses are read as the format says, and no text is too strange or too long to be read."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from veripo_ray.scoring import answers

GOOD = "<think> f1 red so red B </think> <answer> B </answer>"
PUBLISHED_FORMAT = re.compile(r"<think>(.+?)</think>\s*<answer>.+?</answer>", re.DOTALL)
tagged = st.lists(
    st.sampled_from([*answers.TAGS, "<think", "</", " ", "\n", "x", "B", "$3$", "\x1c"]),
    max_size=12,
).map("".join)


def test_a_good_response_is_cut_into_thinking_and_answer():
    parts = answers.split(GOOD)
    assert parts.well_formed
    assert parts.thinking_text == " f1 red so red B "
    assert parts.answer_text == " B "


def test_text_around_a_good_response_is_tolerated():
    assert answers.split(f"Sure! {GOOD} Hope this helps.").well_formed


@given(tagged | st.text())
@example("<think></think><answer>B</answer>")
@example("<think>x</think>\x1c<answer>B</answer>")
@example("<think>x</think>and<answer>B</answer>")
def test_the_format_is_the_published_pattern_with_exactly_one_of_each_tag(text):
    once = all(text.count(tag) == 1 for tag in answers.TAGS)
    assert answers.split(text).well_formed == (once and bool(PUBLISHED_FORMAT.search(text)))


@given(tagged | st.text())
def test_any_text_has_a_thinking_and_perhaps_an_answer_inside_it(text):
    parts = answers.split(text)
    start, end = parts.thinking
    assert 0 <= start <= end <= len(text)
    if parts.answer is not None:
        start, end = parts.answer
        assert text[:start].endswith("<answer>")
        assert text[end:].startswith("</answer>")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("B", "<think> is missing"),
        (GOOD + "<answer>", "<answer> occurs 2 times"),
        ("</think><think>x<answer>B</answer>", "out of order"),
        ("<think>x</think> so <answer>B</answer>", "between"),
        ("<think></think><answer>B</answer>", "thinking is empty"),
        ("<think>x</think><answer></answer>", "answer is empty"),
    ],
)
def test_what_breaks_the_format_is_named(text, problem):
    assert problem in answers.split(text).problem


@pytest.mark.parametrize(
    "text",
    [
        "<think>a<think>b</think>c</think><answer>d</answer>",  # nested
        "<think>a</think><answer>b<answer>c</answer></answer>",
        "\uff1cthink\uff1ea</think><answer>b</answer>",  # full-width brackets
        "<th\u0456nk>a</think><answer>b</answer>",  # a Cyrillic letter
        "<think\u200b>a</think><answer>b</answer>",  # a space of no width
        "<THINK>a</THINK><ANSWER>b</ANSWER>",
    ],
)
def test_nested_tags_and_what_only_looks_like_a_tag_break_the_format(text):
    assert not answers.split(text).well_formed


def test_an_unclosed_thinking_reaches_to_the_end_and_has_no_answer():
    parts = answers.split("<think> f1 red")
    assert parts.thinking_text == " f1 red"
    assert parts.answer_text is None


def test_of_several_answers_the_last_complete_one_counts():
    text = "<answer> A </answer> <answer> B </answer> <answer> C"
    assert answers.split(text).answer_text == " B "


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9.5", 9.5),
        ("$9.5$", 9.5),
        ("-1,200.5 m", -1200.5),
        ("3/4", 0.75),
        (r"\frac{3}{4}", 0.75),
        (r"\dfrac{3}{4}", 0.75),
        (r"1.5 \times 10^{3}", 1500.0),
        ("1e-3", 0.001),
        ("\N{MINUS SIGN}7", -7.0),
        ("50%", 50.0),
        (".5", 0.5),
        ("3 = 3.0", 3.0),
        ("about 5m", 5.0),
        ("3 or 4", None),
        ("three", None),
        ("f1", None),
        ("1/0", None),
        ("1e999", None),
        (r"3 \times 10^{999}", None),
        (r"3 \times 10^{-999}", 0.0),
        ("nan", None),
        ("", None),
        ("9" * 2000, None),
    ],
)
def test_an_answer_states_one_number_or_none(text, value):
    assert answers.number(text) == value


def test_a_minus_between_operands_is_no_sign():
    assert list(answers.numbers("3-5")) == [3.0, 5.0]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_is_read_back(value):
    assert answers.number(repr(value)) == value


@given(st.text(alphabet="0123456789.,/-+eE$\\{}frac ^*x", max_size=200) | st.text())
@example("1*10^999")
def test_numbers_survive_any_text(text):
    assert all(abs(value) < float("inf") for value in answers.numbers(text))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *(("B", "B"), (" (c) ", "C"), ("$D$", "D"), ("B. red car", "B"), ("Option A", "A")),
        *(("A red car", None), ("fun", None), ("", None)),
    ],
)
def test_a_leading_letter_stands_apart_from_words(text, letter):
    assert answers.leading_letter(text) == letter


@pytest.mark.parametrize(("text", "letter"), [("only B", "B"), ("B b", "B"), ("A or B", None)])
def test_a_lone_letter_is_the_only_one(text, letter):
    assert answers.lone_letter(text) == letter


@pytest.mark.parametrize(
    "piece",
    ["9", "1,234", "1/", "-", "1e", r"\frac{", ".", "<think>", "</answer>", "a ", "\n", "{1}{"],
)
def test_a_megabyte_of_anything_is_read(piece):
    """No timing: with a quadratic pattern this would run into the suite's time limit."""
    text = piece * (2**20 // len(piece))
    answers.split(text)
    answers.leading_letter(text)
    assert all(value is not None for value in answers.numbers(text))
