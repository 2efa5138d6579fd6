"""Loops and returning passages are found; saying something twice is not repetition."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.tinyworld import chains, world
from veripo_ray.verifier.repetition import _returns, repetition

CHAIN = "f1 red 1 f2 blue 1 f3 red 2 f4 red 3 f5 blue 3 f6 red 4 f7 red 5 f8 blue 5 so 5"
PROSE = "The red car turns left at the corner. "


@pytest.mark.parametrize("text", ["", "wait", "wait wait", CHAIN, f"{CHAIN} wait {CHAIN}"])
def test_a_chain_that_reconsiders_does_not_repeat_itself(text):
    assert repetition(text).share == 0.0


@pytest.mark.parametrize(
    ("text", "share"),
    [("wait " * 10, 0.9), ("f1 red 1 " * 4, 0.75), (PROSE * 5, 0.8), ("\u54c8" * 10, 0.9)],
)
def test_a_loop_counts_from_its_second_round(text, share):
    assert repetition(text).share == pytest.approx(share)


def test_an_unbroken_run_of_characters_is_a_loop():
    assert repetition("ha" * 600).share > 0.9


def test_a_passage_that_returns_apart_counts_from_its_third_time():
    fillers = ["one two three", "four five six seven", "eight nine"]
    text = " ".join(f"{PROSE} {filler}" for filler in fillers)
    found = repetition(text)
    assert 0.1 < found.share < 0.34
    (start, end), *_ = found.spans
    assert text[start:end] == PROSE.strip()
    assert start > 2 * len(PROSE)


def test_evidence_points_at_the_rounds_after_the_first():
    text = "f1 red so so so so 3"
    assert [text[s:e] for s, e in repetition(text).spans] == ["so so so"]


def test_every_repetitive_demonstration_of_the_tiny_world_is_found_and_no_clean_one():
    rng, scenes = Random(0), world.scenes(0, held_out=False)
    for _, scene in zip(range(60), scenes, strict=False):
        for task in world.TASKS:
            asked = world.ask(scene, task, rng)
            loops = chains.demonstrate(scene, asked, chains.Mix(repetitive=1.0), rng)
            assert repetition(loops).share > 0.2
            assert repetition(chains.demonstrate(scene, asked, chains.CLEAN, rng)).share == 0.0


@given(st.text(alphabet="ab ,\n\u54c8", max_size=300) | st.text(), st.integers(1, 12))
def test_any_text_has_a_share_and_spans_inside_it(text, n):
    found = repetition(text, n)
    assert 0 <= found.share <= 1
    assert bool(found.spans) == (found.share > 0)
    assert all(0 <= start < end <= len(text) for start, end in found.spans)


@given(st.lists(st.sampled_from("abc"), max_size=60), st.integers(2, 8))
def test_returning_passages_are_those_that_a_plain_count_finds(words, n):
    """The quick way against a table of all n-grams."""
    seen: dict[tuple[str, ...], int] = {}
    expected = [False] * len(words)
    for at in range(len(words) - n + 1):
        gram = tuple(words[at : at + n])
        seen[gram] = seen.get(gram, 0) + 1
        if seen[gram] >= 3:
            expected[at : at + n] = [True] * n
    if len(words) > 2 * n:
        ids = np.array([ord(word) for word in words], np.int64)
        assert _returns(ids, n).tolist() == expected
