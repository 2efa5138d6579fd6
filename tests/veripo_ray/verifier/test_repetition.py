"""Loops and returning passages are found; saying something twice is not repetition."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veripo_ray.tinyworld import chains, world
from veripo_ray.verifier.repetition import _grouped, _rounds, repetition, repetitions

CHAIN = "f1 red 1 f2 blue 1 f3 red 2 f4 red 3 f5 blue 3 f6 red 4 f7 red 5 f8 blue 5 so 5"
UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]{{1,24}}|[^\w\s]")
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


def plainly(text: str, n: int) -> tuple[float, tuple[tuple[int, int], ...]]:
    """The definition word by word, in plain loops."""
    matches = list(WORD.finditer(text))
    words = [match[0] for match in matches]
    marked = [False] * len(words)
    for period in range(1, min(4 * n, len(words) // 3) + 1):
        for at in range(len(words) - 3 * period + 1):
            first, *others = (words[at + k * period : at + (k + 1) * period] for k in range(3))
            if others == [first, first]:
                marked[at + period : at + 3 * period] = [True] * (2 * period)
    seen: Counter[tuple[str, ...]] = Counter()
    for at in range(len(words) - n + 1):
        gram = tuple(words[at : at + n])
        seen[gram] += 1
        if seen[gram] >= 3:
            marked[at : at + n] = [True] * n
    if not any(marked):
        return 0.0, ()
    runs, place = [], 0
    for flag, run in groupby(marked):
        length = len(list(run))
        if flag:
            runs.append((matches[place].start(), matches[place + length - 1].end()))
        place += length
    return sum(marked) / len(marked), tuple(sorted(runs, key=lambda run: run[0] - run[1])[:8])


pieces = st.lists(
    st.sampled_from([*"ab .,\n\u54c8\u597d1_", "so 2 ", "x" * 30, "\ud800"]), max_size=8
)
passages = st.lists(st.tuples(pieces, st.integers(1, 4)), max_size=6)


@settings(max_examples=300)
@given(passages, st.integers(1, 12))
def test_what_is_found_is_what_the_definition_finds_word_by_word(passages, n):
    text = "".join("".join(piece) * times for piece, times in passages)
    found = repetition(text, n)
    assert (found.share, found.spans) == plainly(text, n)


@settings(max_examples=300)
@given(st.lists(passages, max_size=8), st.integers(1, 12), st.integers(0, 200))
def test_texts_taken_together_are_found_as_each_alone(several, n, batch):
    texts = ["".join("".join(piece) * times for piece, times in one) for one in several]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("veripo_ray.verifier.repetition._BATCH", batch)
        assert repetitions(texts, n) == [repetition(text, n) for text in texts]


def test_texts_that_are_alike_do_not_repeat_each_other():
    once = "a red car passes a blue one and stops near the corner shop"
    assert repetitions([once] * 9) == [repetition(once)] * 9
    assert repetition(once).share == 0.0


@pytest.mark.parametrize("many", [0, 2**14])
def test_random_text_of_few_words_is_found_as_by_the_definition(monkeypatch, many):
    """many: from how many words or characters on a text is gone through as a long one."""
    monkeypatch.setattr("veripo_ray.verifier.repetition._MANY", many)
    monkeypatch.setattr("veripo_ray.verifier.words._MANY", many)
    rng = Random(0)
    for words, size in (("ab", 600), ("abc", 900), (("!", "ok", "?"), 900), ("abcdefgh", 2000)):
        text = " ".join(rng.choice(words) for _ in range(size))
        found = repetition(text, 5)
        assert (found.share, found.spans) == plainly(text, 5)


def test_ngrams_that_only_the_hashes_last_bits_tell_apart_are_not_mixed_up():
    places = (1 << 3) - 1
    one, other = np.uint64(8 * places), np.uint64(8 * places + 1)
    grams = np.array([one, other, one, other, one], np.uint64)
    order, ordered = _grouped(grams)
    assert order.tolist() == [0, 2, 4, 1, 3]
    assert ordered.tolist() == [one] * 3 + [other] * 2


def test_words_that_only_the_other_bits_tell_apart_are_no_loop():
    alike, other = 1 << 48, (1 << 48) + 1
    ids = np.array([alike] * 4 + [other] + [alike] * 3, np.uint64)
    few = (ids >> np.uint64(48)).astype(np.uint16)
    rounds = _rounds(ids, few, 1)
    assert rounds is not None
    assert np.flatnonzero(rounds).tolist() == [0, 1, 5]


@pytest.mark.parametrize(
    ("piece", "share"),
    [("a", 1.0), ("yes no ", 1.0), ("!", 1.0), ("<think>", 1.0), ("\u54c8", 1.0), (" ", 0.0)],
)
def test_a_megabyte_of_anything_is_measured(piece, share):
    """No timing: with quadratic work this would run into the suite's time limit."""
    found = repetition(piece * (2**20 // len(piece)))
    assert found.share == pytest.approx(share, abs=1e-4)


def test_a_megabyte_of_random_bytes_hardly_repeats_itself():
    text = Random(0).randbytes(2**20).decode("latin-1")
    assert repetition(text).share < 1e-3
