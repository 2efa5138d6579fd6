"""Numbers in prose, in words or in digits, and which of several is the result."""

from __future__ import annotations

import re

from veripo_ray.scoring import answers
from veripo_ray.verifier.judges import units
from veripo_ray.verifier.judges.patterns import any_case
from veripo_ray.verifier.judges.units import Quantity

_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9}
# ASCII: a long s folds into an s, and `six` with one is no word of these lists.
_TENS_WORD = re.compile(
    rf"\b({'|'.join(_TENS)})(?:[- ]({'|'.join(_SMALL[1:10])}))?\b", re.ASCII | re.IGNORECASE
)
_SMALL_WORD = re.compile(rf"\b(?:{'|'.join(_SMALL)})\b", re.ASCII | re.IGNORECASE)
_SCALED = re.compile(
    rf"\b(\d{{1,9}}(?:\.\d{{1,9}})?) ({'|'.join(_SCALES)})\b(?: (?:and )?(\d{{1,9}})\b)?",
    re.ASCII | re.IGNORECASE,
)
_WORD = re.compile(rf"\b{any_case('once', 'twice', 'dozen', *_SMALL, *_TENS)}\b", re.ASCII)
_DIGIT = re.compile(r"\d", re.ASCII)
_PHRASES = (
    (re.compile(r"\b(?:only|just|exactly) (?:once\b|one\b)", re.IGNORECASE), "1"),
    (re.compile(r"\bone and a half\b", re.IGNORECASE), "1.5"),
    (re.compile(r"\btwice\b(?! (?:as|the)\b)", re.IGNORECASE), "2"),
    (re.compile(r"\bhalf a dozen\b", re.IGNORECASE), "6"),
    (re.compile(r"\ba dozen\b", re.IGNORECASE), "12"),
)
_AND_A_HALF = re.compile(r"\b(\d{1,9}) and a half\b", re.ASCII)
_BELOW_ZERO = re.compile(r"(?<![\w.-])(\d{1,9}(?:\.\d{1,9})?(?: \w{1,20})?) below 0\b", re.ASCII)
_MINUS = re.compile(r"(?<!\d )\b(?:minus|negative) (?=\d)", re.ASCII | re.IGNORECASE)

_CLOCK = re.compile(r"\b\d{1,2}:\d\d\b", re.ASCII)
_OF_ALL = re.compile(r"\b(?:out )?of (?:the |these |those |all )?\d{1,9}\b(?!\.\d)", re.ASCII)
_OPERATOR = r"(?:[-+*/\xd7\xb7]|times|plus|minus|divided by)"
_BEFORE_OPERATOR = re.compile(rf"\s?{_OPERATOR}\s?(?=[\d$\\])", re.ASCII)
_BEHIND_OPERATOR = re.compile(rf"\d\s?{_OPERATOR}\s?$", re.ASCII)
_ALTERNATIVE = re.compile(r"\s?(?:or|to|and|[-\u2013])\s?(?:about |maybe )?\d", re.ASCII)
_RANGE = re.compile(r"\b(?:between|from|either) $")
_VERB = re.compile(
    r"(?:=|(?:\b(?:is|are|was|were|be|equals?|makes?|gives?|gets?|have|has|leaves?|find|at|to"
    r"|total of|sum of)|'s)) ?"
    r"(?:about |approximately |roughly |around |only |exactly |still |now )?[$(*]{0,3}$",
    re.IGNORECASE,
)

_Found = tuple[float, tuple[int, int]]


def in_digits(text: str, *, one: bool = False) -> str:
    """`text` with its number words as digits; `one`, so often a pronoun, only where asked for."""

    def small(word: re.Match[str]) -> str:
        count = _SMALL.index(word[0].lower())
        return word[0] if count == 1 and not one else str(count)

    if _WORD.search(text):
        for pattern, digits in _PHRASES:
            text = pattern.sub(digits, text)
        text = _SMALL_WORD.sub(small, _TENS_WORD.sub(_tens, text))
    elif not _DIGIT.search(text):  # the usual case
        return text
    text = _SCALED.sub(_scaled, _AND_A_HALF.sub(r"\1.5", text))
    return _MINUS.sub("-", _BELOW_ZERO.sub(r"-\1", text))


def announced(text: str, *, strong: bool) -> Quantity | None:
    """The quantity in a text that is announced as a conclusion; None when there is none, or there
    are several and none is the result of the others.

    strong: it is announced as the answer, so that the first counts unless it is calculated with.
    """
    text = in_digits(answers.plain_numbers(text), one=strong)
    text = _OF_ALL.sub("", _CLOCK.sub("", text.rpartition("=")[2]))
    found = list(answers.located_numbers(text))
    if not found or any(_wavers(text, one) for one in found):
        return None
    results = [one for one in found if not _is_operand(text, one)]
    if len({value for value, _ in found}) == 1 or (strong and results[:1] == found[:1]):
        return _quantity(text, found[0])
    results = [one for one in results if _follows_verb(text, one)]
    return _quantity(text, results[0]) if len(results) == 1 else None


def said_last(text: str) -> Quantity | None:
    """The only result in a sentence that announces nothing, where a verb leads to it."""
    text = in_digits(answers.plain_numbers(text))
    results = [one for one in answers.located_numbers(text) if not _is_operand(text, one)]
    if len(results) != 1 or _wavers(text, results[0]) or not _follows_verb(text, results[0]):
        return None
    return _quantity(text, results[0])


def others(text: str, quantity: Quantity) -> bool:
    """Whether `text` has another number."""
    plain = _CLOCK.sub("", in_digits(answers.plain_numbers(text)))
    return any(value != quantity.value for value, _ in answers.located_numbers(plain))


def answered(answer: str) -> Quantity | None:
    """The one number that an answer states, as `answers.number` reads it, with its unit."""
    value = answers.number(answer)
    if value is None:
        return None
    plain = answers.plain_numbers(answer)
    *_, last = answers.located_numbers(plain)
    return Quantity(value, _quantity(plain, last).unit)


def _quantity(text: str, found: _Found) -> Quantity:
    value, (_, end) = found
    return Quantity(value, units.behind(text, end))


def _wavers(text: str, found: _Found) -> bool:
    """`2 or 3`, `from 2 to 3`, `2-3`."""
    start, end = found[1]
    return bool(_ALTERNATIVE.match(text, end) or _RANGE.search(text[:start][-10:]))


def _is_operand(text: str, found: _Found) -> bool:
    """`3` and `4` of `3 + 4`."""
    start, end = found[1]
    return bool(_BEFORE_OPERATOR.match(text, end) or _BEHIND_OPERATOR.search(text[:start][-16:]))


def _follows_verb(text: str, found: _Found) -> bool:
    return _VERB.search(text[: found[1][0]][-40:]) is not None


def _tens(words: re.Match[str]) -> str:
    ones = _SMALL.index(words[2].lower()) if words[2] else 0
    return str(20 + 10 * _TENS.index(words[1].lower()) + ones)


def _scaled(words: re.Match[str]) -> str:
    return f"{float(words[1]) * _SCALES[words[2].lower()] + float(words[3] or 0):.12g}"
