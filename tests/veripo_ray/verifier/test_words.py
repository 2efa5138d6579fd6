"""Words are where a regular expression finds them, and their numbers are equal where they are."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.verifier.words import PIECE, ngrams, words

UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]{{1,{PIECE}}}|[^\w\s]")

tricky = st.text(
    alphabet="ab_1 .\n\x1c\u2028\u00a0\u0130\u017f\u0301\u54c8\u3042\uac00\ud800\U0001f600"
)
texts = st.text() | tricky | st.text(alphabet="ab\u54c8", min_size=20, max_size=200)


@given(texts)
def test_words_are_where_the_regular_expression_finds_them(text):
    found = words(text)
    bounds = list(zip(found.starts.tolist(), found.ends.tolist(), strict=True))
    assert bounds == [match.span() for match in WORD.finditer(text)]


@given(texts)
def test_words_have_one_number_exactly_when_they_are_one_word(text):
    spelled = WORD.findall(text)
    numbers = words(text).ids.tolist()
    pairs = set(zip(spelled, numbers, strict=True))
    assert len(pairs) == len(set(spelled)) == len(set(numbers))


@given(st.text(alphabet="ab ", max_size=120), st.integers(1, 20))
def test_ngrams_have_one_number_exactly_when_their_words_are_the_same(text, n):
    spelled = WORD.findall(text)
    grams = [tuple(spelled[at : at + n]) for at in range(len(spelled) - n + 1)]
    numbers = ngrams(words(text).ids, n).tolist()
    pairs = set(zip(grams, numbers, strict=True))
    assert len(pairs) == len(set(grams)) == len(set(numbers))


@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 2**20 + 1])
def test_words_are_told_apart_on_both_sides_of_the_powers_that_are_kept(size):
    found = words(("ab ba" + " " * size)[: size - 2] + "ab")
    assert found.ids[0] == found.ids[-1] != found.ids[1]
    assert len(found) == 3
