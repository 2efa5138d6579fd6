"""The conclusion that a chain of thought states: a letter, a number or a formula.

A *cue* (`so`, `the answer is`, `\\boxed`, `B is correct`) announces a conclusion, and the *window*
behind it, up to the end of the sentence or the next turn of the chain, is read for it. The last
cue whose window can be read counts, since a chain may reconsider. Linear in the text.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from veripo_ray.records import Kind
from veripo_ray.scoring import answers

_STRONG = (
    r"\\boxed\{|(?:answer|option|choice|conclusion|result|total|value)(?: here)?"
    r"(?: is| must be| should be| would be| was|:)(?: therefore| thus| clearly| simply)?"
    r"|\b(?:choose|pick|select|go with|answer with)\b"
)
_WEAK = r"\b(?:so|therefore|thus|hence|conclude(?: that)?|in total|altogether)\b"
_STATED = (
    r"(?<!\w)(?P<stated>[A-J])(?=\W{0,3}\s(?:is|must be|seems) (?:the )?"
    r"(?:correct|right|best|true|only|answer))"
)
_CUE = re.compile(rf"{_STATED}|(?i:(?P<strong>{_STRONG})|{_WEAK})")
# What ends a window: the sentence, a turn of thought, or (tiny world) a look at another frame.
_TURN = re.compile(
    r"[.!?](?=\s|$)|\n|\bf\d+\b|\b(?:wait|however|but|because|since|hmm)\b", re.IGNORECASE
)
_WINDOW = 160
_MAX_CUES = 64

# A letter by itself: `B`, `(B)`, `**B**`, `$B$`. `A` and `I` are words, too, so those (and any
# lower-case letter) need a bracket, or must stand where a word could not.
_LETTER = re.compile(
    r"(?<![\w'])(?P<open>[(\[$*]{0,3})(?P<letter>[A-Ja-j])(?P<close>[)\]$*:]{0,3})(?![\w'])"
)
_NEGATION = re.compile(
    r"(?:\bnot|n't|\bneither|\bnor|\brather than|\binstead of)\s+(?:option\s+)?\W{0,3}$",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(r"\s*(?:,|/|or\b|and\b)", re.IGNORECASE)
_COUNTS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)
_COUNT = re.compile(rf"\b(?:{'|'.join(_COUNTS)})\b", re.IGNORECASE)
_DOLLARS = re.compile(r"\$([^$]{1,200})\$")


@dataclass(frozen=True, slots=True)
class Conclusion:
    """value: an upper-case letter, a number, or LaTeX; span: [start, end) of cue and window."""

    value: str
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Window:
    text: str
    span: tuple[int, int]
    strong: bool  # the cue names the answer as such
    last: bool  # nothing but white space comes behind it
    stated: str | None  # the letter, where the cue contains it


def find(thinking: str, kind: Kind, options: tuple[str, ...]) -> Conclusion | None:
    """The last conclusion of this kind that can be read, or None."""
    for window in _windows(thinking):
        match kind:
            case Kind.CHOICE:
                value = _read_choice(window, options)
            case Kind.NUMERIC:
                value = _read_number(window)
            case Kind.MATH:
                value = _read_formula(window)
        if value is not None:
            return Conclusion(value, window.span)
    return None


def option_in(text: str, options: tuple[str, ...]) -> str | None:
    """The letter of the only option whose words occur in `text`, or None."""
    padded = f" {_plain(text)} "
    found = [
        (letter, words)
        for letter, option in zip(answers.LETTERS.upper(), options, strict=False)
        if (words := _plain(option)) and f" {words} " in padded
    ]
    # `red` inside a found `dark red` was not meant by itself
    widest = [letter for letter, words in found if not any(_within(words, o) for _, o in found)]
    return widest[0] if len(widest) == 1 else None


def _within(words: str, others: str) -> bool:
    return words != others and f" {words} " in f" {others} "


def _windows(thinking: str) -> list[_Window]:
    """The windows of the last cues, last first."""
    cues = deque(_CUE.finditer(thinking), maxlen=_MAX_CUES)
    windows = []
    for cue in reversed(cues):
        text = thinking[cue.end() : cue.end() + _WINDOW]
        if cue[0].startswith("\\"):
            text = _balanced(text)
        elif turn := _TURN.search(text):
            text = text[: turn.start()]
        end = cue.end() + len(text)
        last = not thinking[end:].strip(" \n\t.!}")
        strong = cue["strong"] is not None
        windows.append(_Window(text, (cue.start(), end), strong, last, cue["stated"]))
    return windows


def _balanced(text: str) -> str:
    """`text` up to the brace that closes the one before it."""
    depth = 1
    for at, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[:at]
    return text


def _read_choice(window: _Window, options: tuple[str, ...]) -> str | None:
    if window.stated:
        return window.stated
    letters = _letters(window.text)
    if len({letter for letter, _ in letters}) == 1:
        return letters[0][0]
    if letters:  # several: the first may still be named as the answer
        first, behind = letters[0]
        named = window.strong and not _ALTERNATIVE.match(window.text, behind)
        return first if named else None
    return option_in(window.text, options) if window.strong or window.last else None


def _letters(text: str) -> list[tuple[str, int]]:
    """The option letters that `text` affirms, and where each ends."""
    return [
        (match["letter"].upper(), match.end())
        for match in _LETTER.finditer(text)
        if _is_option(match, text) and not _NEGATION.search(text[: match.start()][-24:])
    ]


def _is_option(match: re.Match[str], text: str) -> bool:
    if match["open"] or match["close"]:
        return True
    letter, behind = match["letter"], text[match.end() :].lstrip()
    if letter in "AI" or letter.islower():  # an article, a pronoun, a variable
        return not behind or (letter.isupper() and behind.startswith((*".,;:/", "or ", "and ")))
    return True


def _read_number(window: _Window) -> str | None:
    def digits(word: re.Match[str]) -> str:
        count = _COUNTS.index(word[0].lower())
        return word[0] if count == 1 and not window.strong else str(count)  # `this one`

    text = _COUNT.sub(digits, window.text.rpartition("=")[2])
    found = list(answers.numbers(text))
    if not found or (len(set(found)) > 1 and not window.strong):
        return None
    return repr(found[0]).removesuffix(".0")


def _read_formula(window: _Window) -> str | None:
    if dollars := _DOLLARS.search(window.text):
        return dollars[1].strip() or None
    if window.span[1] - window.span[0] == len(window.text) + len("\\boxed{"):
        return window.text.strip() or None
    return _read_number(window)


def _plain(text: str) -> str:
    """Words alone, folded, for comparing an option with prose."""
    return " ".join(re.findall(r"\w+", text.casefold()))
