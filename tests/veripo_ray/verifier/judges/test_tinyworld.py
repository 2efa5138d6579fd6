"""The tiny world's own judge is exact on its language, and undecided on everything else."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.records import Kind
from veripo_ray.scoring import answers
from veripo_ray.tinyworld import chains, world
from veripo_ray.tinyworld.vocabulary import WORDS
from veripo_ray.verifier.judges import Case, Judgement, TinyWorld

MIXES = (chains.CLEAN, chains.SLIPPING, chains.NOISY, chains.Mix(slip=1.0, loyal=0.5))


def judged(thinking: str, answer: str) -> Judgement:
    (judgement,) = asyncio.run(TinyWorld().judge([Case("?", Kind.CHOICE, (), thinking, answer)]))
    assert judgement.error is None
    return judgement


@given(st.integers(), st.sampled_from(world.TASKS), st.sampled_from(MIXES))
def test_it_is_exact_on_whatever_the_tiny_world_demonstrates(seed, task, mix):
    scene = next(world.scenes(seed, held_out=False))
    rng = Random(seed)
    asked = world.ask(scene, task, rng)
    parts = answers.split(chains.demonstrate(scene, asked, mix, rng))
    thinking, answer = parts.thinking_text, parts.answer_text.strip()
    written = thinking.split()[-1]
    judgement = judged(thinking, parts.answer_text)
    assert judgement.consistent is (written == answer)
    start, end = judgement.evidence
    assert thinking[start:end].split()[0] == "so"
    assert thinking[start:end].split()[-1] == written
    assert judged(thinking, "A" if answer != "A" else "B").consistent is (
        written == ("A" if answer != "A" else "B")
    )


@given(st.integers())
def test_it_reads_the_option_drill(seed):
    _, text = chains.drill(Random(seed))
    assert judged(text, text.split()[-1]).consistent is True


@pytest.mark.parametrize(
    ("thinking", "answer", "consistent"),
    [
        ("so A wait f1 red f2 blue so blue C", "C", True),
        ("so A wait f1 red f2 blue so blue C", "A", False),
        ("f1 left 0 f2 right 1 so 1", "1", True),
        (" \n f1 red 1\tso 1 \n", "2", False),
        ("so red B", "3", False),
        ("f1 red f2 f1 red f2 f1 red f2 blue so blue C", "C", True),  # cut in the middle of a look
    ],
)
def test_the_last_conclusion_counts(thinking, answer, consistent):
    assert judged(thinking, answer).consistent is consistent


@pytest.mark.parametrize(
    "thinking",
    [
        "",
        "f1 red 1",
        "so",
        "so red",
        "so 3 wait",
        "so 3 f1 red",
        "f1 red 1 so three",
        "f9 red 1 so 1",
        "f1 left so 1",
        "f1 red1 so 1",
        "wait so 1",
        "so 1.",
        "The answer is B",
        "so red 3",
    ],
)
def test_what_is_no_chain_is_undecided(thinking):
    judgement = judged(thinking, "B")
    assert judgement.consistent is None
    assert "no chain" in judgement.reason


@pytest.mark.parametrize("answer", ["red", "A B", "9", "the answer", "$B$", "a"])
def test_an_answer_outside_the_language_is_undecided(answer):
    judgement = judged("f1 red so red B", answer)
    assert (judgement.consistent, judgement.evidence) == (None, (7, 15))


@given(st.lists(st.sampled_from(WORDS)).map(" ".join) | st.text(), st.text())
def test_any_text_gets_a_judgement(thinking, answer):
    assert judged(thinking, answer).reason


def test_a_megabyte_is_read():
    chain = "f1 red 1 so 1 wait " * 60_000 + "so 2"
    assert judged(chain, "2").consistent is True
