from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.questions import parts
from veripo_ray.records import Kind

words = st.text("abcxyz ", min_size=1).filter(str.strip)
option_lists = st.lists(words, min_size=2, max_size=10)
STYLES = ["{}. ", "{}) ", "({}) ", "{}: ", "({})", "{}.", "{}\N{FULLWIDTH COLON}"]


@given(option_lists, st.sampled_from(STYLES))
def test_options_lose_their_letters_in_every_style(texts, style):
    lettered = [style.format(chr(65 + k)) + text for k, text in enumerate(texts)]
    assert parts.options(lettered) == tuple(text.strip() for text in texts)
    assert parts.options(texts) == tuple(text.strip() for text in texts)


@given(option_lists, st.sampled_from(STYLES[:4]), words)
def test_options_at_the_end_of_a_question_are_found(texts, style, question):
    lines = [style.format(chr(65 + k)) + text.strip() for k, text in enumerate(texts)]
    for heading in ("", "Options:\n", "Choices\n"):
        found = parts.split_options(question.strip() + "\n" + heading + "\n".join(lines))
        assert found == (question.strip(), tuple(text.strip() for text in texts))


@pytest.mark.parametrize(
    ("given_options", "expected"),
    [
        (["A. A. Apples.", "B. B. Pears."], ("Apples.", "Pears.")),
        (["A. A. Milne", "B. E. B. White"], ("A. Milne", "E. B. White")),
        (["A. Milne", "Tolkien"], ("A. Milne", "Tolkien")),
        (["10.0", "5.0"], ("10.0", "5.0")),
        ({"B": "two", "A": "one"}, ("one", "two")),
        ([1, 2], ("1", "2")),
        (None, ()),
        ([], ()),
    ],
)
def test_known_options(given_options, expected):
    assert parts.options(given_options) == expected


@pytest.mark.parametrize("bad", ["A. red", 3, ["red", " "]])
def test_unusable_options_are_an_error(bad):
    with pytest.raises(ValueError, match="option"):
        parts.options(bad)


@pytest.mark.parametrize(
    "text", ["What?", "A. red\nB. blue", "Choose\nB. red\nA. blue", "Say A. or B.", "Say\nA. red"]
)
def test_a_text_without_options_at_its_end_stays_whole(text):
    assert parts.split_options(text) == (text, ())


@pytest.mark.parametrize(
    "wrapped",
    ["B", " B\n", r"$\boxed{\textbf{B}}$", "<answer>B</answer>", "<answer> $B$ </answer>",
     r"$\boxed{B}$", "$$B$$", r"\(B\)", r"\[B\]", "<think>A</think><answer>B</answer>"],
)  # fmt: skip
def test_an_answer_loses_what_it_is_wrapped_in(wrapped):
    assert parts.answer_text(wrapped) == "B"


def test_latex_inside_an_answer_stays():
    assert parts.answer_text(r"$\frac{1}{2}$ or $x$") == r"$\frac{1}{2}$ or $x$"
    assert parts.answer_text(r"$\frac{1}{2}$") == r"\frac{1}{2}"
    assert parts.answer_text(r"\boxed{a} + \boxed{b}") == r"\boxed{a} + \boxed{b}"
    assert parts.answer_text(3) == "3"


@pytest.mark.parametrize("bad", [None, True, [], {}, "", "  ", "<answer></answer>", "$ $"])
def test_an_answer_that_is_not_there_is_an_error(bad):
    with pytest.raises(ValueError, match="answer"):
        parts.answer_text(bad)


@pytest.mark.parametrize(
    "answer", ["B", "b", "(B)", "B.", "B)", "B. blue", "(B) Blue", "blue", "BLUE"]
)
def test_the_right_option_is_found_by_letter_or_text(answer):
    assert parts.choice_gold(answer, ("red", "blue", "green")) == "B"


@pytest.mark.parametrize("answer", ["A, B", "yellow", "K", "B. red", "AB", "1"])
def test_an_answer_that_is_no_option_is_an_error(answer):
    with pytest.raises(ValueError, match="neither a letter nor one of the options"):
        parts.choice_gold(answer, ("red", "blue"))


def test_two_options_of_the_same_text_are_not_told_apart():
    with pytest.raises(ValueError, match="neither"):
        parts.choice_gold("red", ("red", "red"))


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_numbers_are_kept_as_they_are_written(value):
    assert parts.gold(Kind.NUMERIC, str(value), ()) == str(value)


def test_what_is_not_one_number_is_an_error():
    for text in ("many", "3 or 4", ""):
        with pytest.raises(ValueError, match="not one number"):
            parts.gold(Kind.NUMERIC, text, ())


def test_media_paths_are_local_files():
    assert parts.path_of("file:///data/a.mp4") == "/data/a.mp4"
    assert parts.path_of("a.mp4") == "a.mp4"
    for bad in ("https://x.org/a.mp4", "data:image;base64,xx", "", None, 3, {}):
        with pytest.raises(ValueError, match="media"):
            parts.path_of(bad)


def test_placeholders_go_and_other_tags_stay():
    assert parts.without_placeholders("<image>\nHow many <b>cats</b>?") == "How many <b>cats</b>?"
    assert parts.without_placeholders("In <video> what moves?") == "In what moves?"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(anything)
def test_nothing_but_value_errors_comes_of_arbitrary_values(value):
    for reader in (parts.options, parts.answer_text, parts.path_of, parts.listed):
        with contextlib.suppress(ValueError):
            reader(value)
    if isinstance(value, str):
        text, options = parts.split_options(value)
        assert len(options) != 1
        assert text == value.strip() or options
