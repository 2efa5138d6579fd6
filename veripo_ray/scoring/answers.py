"""Reading a response: its tagged parts, and the letter or the number an answer states.

Everything here takes arbitrary text, never fails on it, and runs in time linear in its length:
the tags are found by `str.find`, and no regular expression can backtrack over more than a token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
LETTERS = "abcdefghij"
MAX_ANSWER_CHARACTERS = 1000  # what is longer is no answer to a question for a number or a formula

# Possessive quantifiers (`++`) keep each token's match linear. A digit that belongs to a word
# (`f1`, `x2`) is not a number, and a minus between two operands is not a sign.
_DECIMAL = (
    r"(?:(?<![\w.)}])[-+])?(?<![A-Za-z_\d])"
    r"(?:\d++(?:,\d{3}(?!\d))*+(?:\.\d++)?+|\.\d++)(?:[eE][-+]?\d++)?+"
)
_NUMBER = re.compile(
    rf"({_DECIMAL})"
    rf"(?:\s?/\s?({_DECIMAL})|\s?(?:\\times|\\cdot|[\xd7*])\s?10\^\{{?([-+]?\d{{1,3}})\}}?)?",
    re.ASCII,
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]{1,40})\}\{([^{}]{1,40})\}")
_LEADING_LETTER = re.compile(
    r"[\W_]{0,8}(?:(?:option|choice)[\W_]{1,8})?([A-J])(?=\s*(?:[.:),\]$*}]|$))", re.IGNORECASE
)
_LONE_LETTER = re.compile(r"(?<!\w)[A-J](?!\w)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Parts:
    """Where a response's thinking and answer lie, as [start, end) offsets into its text.

    `thinking` is read tolerantly, so that even an ill-formed response can be measured: from the
    first `<think>` (or the beginning) to the next `</think>` (or `<answer>`, or the end).
    `answer` is inside the last complete pair of answer tags. `problem` says what breaks the
    format, and is empty when nothing does.
    """

    text: str
    thinking: tuple[int, int]
    answer: tuple[int, int] | None
    problem: str

    @property
    def well_formed(self) -> bool:
        return not self.problem

    @property
    def thinking_text(self) -> str:
        return self.text[slice(*self.thinking)]

    @property
    def answer_text(self) -> str | None:
        return None if self.answer is None else self.text[slice(*self.answer)]


def split(text: str) -> Parts:
    return Parts(text, _thinking(text), _answer(text), _format_problem(text))


def _thinking(text: str) -> tuple[int, int]:
    opened = text.find("<think>")
    start = 0 if opened < 0 else opened + len("<think>")
    for closing in ("</think>", "<answer>"):
        end = text.find(closing, start)
        if end >= 0:
            return start, end
    return start, len(text)


def _answer(text: str) -> tuple[int, int] | None:
    end = text.rfind("</answer>")
    opened = text.rfind("<answer>", 0, max(end, 0))
    return None if opened < 0 else (opened + len("<answer>"), end)


def _format_problem(text: str) -> str:
    """What keeps `text` from the format `<think>(.+?)</think>\\s*<answer>.+?</answer>`.

    Exactly one of each tag and the pattern found anywhere, as VerIPO's evaluation code asks.
    """
    for tag in TAGS:
        count = text.count(tag)
        if count != 1:
            return f"{tag} occurs {count} times instead of once" if count else f"{tag} is missing"
    think, end_think, answer, end_answer = (text.index(tag) for tag in TAGS)
    if not think < end_think < answer < end_answer:
        return "the tags are out of order"
    if text[end_think + len("</think>") : answer].strip():
        return "there is text between </think> and <answer>"
    if end_think == think + len("<think>"):
        return "the thinking is empty"
    if end_answer == answer + len("<answer>"):
        return "the answer is empty"
    return ""


def letters_in(text: str) -> set[str]:
    """Which of the option letters a..j occur anywhere in `text`, case folded."""
    return set(text.casefold()).intersection(LETTERS)


def leading_letter(text: str) -> str | None:
    """The option letter (upper case) that an answer is or begins with, as in `B. red car`: read
    more kindly than the reward reads it."""
    match = _LEADING_LETTER.match(text)
    return match[1].upper() if match else None


def lone_letter(text: str) -> str | None:
    """The only option letter (upper case) that stands by itself in `text`, or None."""
    found = {match[0].upper() for match in _LONE_LETTER.finditer(text)}
    return found.pop() if len(found) == 1 else None


def number(text: str) -> float | None:
    """The one number that `text` states, or None when it states none or several or is too long.

    Understands signs, thousands commas, exponents, `a/b`, `\\frac{a}{b}`, `a \\times 10^b`;
    units and other words are passed over. Only finite numbers count.
    """
    return _number(text) if len(text) <= MAX_ANSWER_CHARACTERS else None


@lru_cache(maxsize=4096)  # a group's rollouts share their gold, and often their answer
def _number(text: str) -> float | None:
    seen = set(numbers(text))
    return seen.pop() if len(seen) == 1 else None


def numbers(text: str) -> Iterator[float]:
    """Every finite number in `text`, in order."""
    return (value for value, _ in located_numbers(plain_numbers(text)))


def plain_numbers(text: str) -> str:
    """`text` with its numbers written plainly: LaTeX's commas, spaces and fractions replaced."""
    text = text.replace("\N{MINUS SIGN}", "-").replace("{,}", ",").replace("\\,", "")
    return _LATEX_FRACTION.sub(r"\1/\2", text)


def located_numbers(text: str) -> Iterator[tuple[float, tuple[int, int]]]:
    """Every finite number in plain `text`, in order, with its [start, end)."""
    for match in _NUMBER.finditer(text):
        value = _value(*match.groups())
        if value is not None:
            yield value, match.span()


def _value(first: str, divisor: str | None, exponent: str | None) -> float | None:
    value = float(first.replace(",", ""))
    if divisor is not None:
        below = float(divisor.replace(",", ""))
        value = value / below if below else math.nan
    if exponent is not None:
        value *= float(f"1e{exponent}")  # infinite where 10.0 ** 999 would raise
    return value if math.isfinite(value) else None
