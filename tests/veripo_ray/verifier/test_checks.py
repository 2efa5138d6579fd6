"""The quick ways of the checks give what their definitions give, on any text of any size."""

from __future__ import annotations

import re
import sys
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray import config
from veripo_ray.records import CHECKS, Kind
from veripo_ray.scoring import answers
from veripo_ray.verifier.checks import check_reflection
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.verify import Item, verify

CFG = config.Checks()
PHRASES = [word.removesuffix("*") for word in CFG.reflective_words]
pieces = st.sampled_from([*PHRASES, *"<>.,!? \n", "<think>", "</think>", "<answer>", "ing", "WAIT"])


def plainly(text: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """All turns, and those in their place: by one regular expression and by slices of the text."""
    phrases = [
        re.escape(word.removesuffix("*")) + (r"\w*" if word.endswith("*") else "")
        for word in sorted(CFG.reflective_words, key=len, reverse=True)
    ]
    pattern = re.compile(rf"\b(?:{'|'.join(phrases)})\b", re.IGNORECASE)
    turns = [match.span() for match in pattern.finditer(text)]
    first, last = answers.split(text).thinking
    placed = [
        (start, end)
        for start, end in turns
        if first <= start <= end <= last
        and text[first:start].strip()
        and text[end:last].strip(" \t\n.,:;!?")
    ]
    return turns, placed


@given(st.lists(pieces | st.text(max_size=3), max_size=30).map("".join))
def test_reflective_turns_are_those_of_the_plain_definition(text):
    turns, placed = plainly(text)
    check = check_reflection(answers.split(text), CFG)
    assert check.value == len(placed)
    assert check.passed is (bool(placed) if turns else None)
    assert [(span.start, span.end) for span in check.evidence] == (placed or turns)[:8]


def test_lowering_moves_no_character():
    """Turns are looked for in lowered text and shown in the text itself."""
    grown = [chr(code) for code in range(sys.maxunicode + 1) if len(chr(code).lower()) > 1]
    assert grown == ["\u0130"]
    text = "<think>\u0130\u0130 one. WAIT, two</think><answer>A</answer>"
    (span,) = check_reflection(answers.split(text), CFG).evidence
    assert text[span.start : span.end] == "WAIT"


@pytest.mark.parametrize(
    "text",
    [
        *(piece * (2**20 // len(piece)) for piece in ("wait ", "yes no ", "<think>", "let me ")),
        "<think>" + "w " * 2**19,
        Random(0).randbytes(2**20).decode("utf-8", "replace"),
    ],
)
def test_a_megabyte_of_anything_gets_a_verdict(text):
    """No timing: with quadratic work this would run into the suite's time limit."""
    (verdict,) = verify([Item(kind=Kind.CHOICE, gold="A", response=text)], Rules())
    assert [check.name for check in verdict.checks] == list(CHECKS)
    assert verdict.error is None
    assert all(len(check.evidence) <= 8 for check in verdict.checks)
