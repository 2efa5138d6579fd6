"""Model output as HTML: nothing lost, nothing obeyed, differences marked."""

from __future__ import annotations

import html
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from veripo_ray.report.markup import FORBIDDEN, MAX_CHARACTERS, compared, readable, response

TEXT = st.text(max_size=60) | st.lists(
    st.sampled_from(["<think>", "</think>", "<b>", "&amp;", "so", "red", "\n", '"', "<mark>"]),
    max_size=30,
).map(" ".join)


def plain(markup: str) -> str:
    """What a reader sees of the markup."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


@given(TEXT)
def test_a_response_is_shown_whole_and_only_our_tags_are_tags(text: str) -> None:
    shown = str(response(text))
    assert plain(shown) == readable(text)
    assert set(re.findall(r"<[^>]*>", shown)) <= {'<span class="tag">', "</span>"}


@settings(max_examples=60)
@given(TEXT, TEXT)
def test_comparing_loses_no_character_of_either_side(left: str, right: str) -> None:
    ours = {'<span class="tag">', "</span>", "<mark>", "</mark>"}
    for shown, text in zip(compared(left, right), (left, right), strict=True):
        assert plain(str(shown)) == readable(text)
        assert set(re.findall(r"<[^>]*>", str(shown))) <= ours


def test_exactly_the_words_of_one_side_are_marked() -> None:
    chosen, rejected = compared("f1 red so red A", "f1 red so blue C A")
    assert str(chosen) == "f1 red so <mark>red</mark> A"
    assert str(rejected) == "f1 red so <mark>blue C</mark> A"


def test_equal_sides_have_nothing_marked() -> None:
    chosen, rejected = compared("<think> a </think>", "<think> a </think>")
    assert chosen == rejected
    assert "<mark>" not in chosen


def test_think_tags_are_visible_and_tinted() -> None:
    assert str(response("<think>x")) == '<span class="tag">&lt;think&gt;</span>x'


def test_an_overlong_response_says_how_much_was_left_out() -> None:
    shown = str(response("a" * (MAX_CHARACTERS + 1234)))
    assert "1,234 more characters" in shown


@given(st.text(alphabet=st.characters(), max_size=80))
def test_what_no_page_may_hold_is_replaced_one_for_one(text: str) -> None:
    clean = readable(text)
    assert len(clean) == len(text)
    assert not FORBIDDEN.search(clean)
    clean.encode()
