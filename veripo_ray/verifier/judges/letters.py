"""Option letters in prose: affirmed, named among others, denied."""

from __future__ import annotations

import re
from dataclasses import dataclass

from veripo_ray.verifier.judges.windows import Window

# A letter by itself: `B`, `(B)`, `**B**`, `$B$`. `A` and `I` are words, too, so those (and any
# lower-case letter) need a bracket, or must stand where a word could not.
_LETTER = re.compile(
    r"(?<![\w'])(?P<open>[(\[$*]{0,3})(?P<letter>[A-Ja-j])(?P<close>[)\]$*:]{0,3})(?![\w'])"
)
_NO = (
    r"(?:\bnot|n['\u2019]t|\bcannot|\bneither|\bnor|\brather than|\binstead of|\brul(?:es?|ed|ing)"
    r" out|\bexclud(?:es?|ed|ing)|\beliminat(?:es?|ed|ing))"
)
_NEGATED = re.compile(
    rf"{_NO}(?:\s+(?:be|is|it|options?|choice|the|answer|either))*\W{{0,3}}$", re.IGNORECASE
)
_DOUBTED = re.compile(r"(?:\bnot|n['\u2019]t|\bneither|\bnor|\bwhether|\bif)\b[^.,;]*$", re.I)
_ALONE = re.compile(r"[A-J](?<!\w.)(?!\w)", re.DOTALL)  # a set first: the engine searches for it
_AN_OPTION = re.compile(r"\b(?:option|choice|answer) $", re.IGNORECASE)
_DENIED = re.compile(
    r"[)\]*$]{0,3}\s(?:(?:is|are|was|can|must|can be|must be|does|do) )?"
    r"(?:also |both |all |clearly )?"
    r"(?:not|cannot|(?:is|are|was|does|do|ca)n['\u2019]t|wrong|false|incorrect"
    r"|out|excluded|impossible|ruled out|eliminated)\b",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(r"\s*(?:,|/|or\b|and\b)+\s*(?:option )?[(*]{0,3}[A-J]\b", re.IGNORECASE)
_LIST = r"\(?[A-J]\)?(?:(?:,| and| or| nor|, and|, or) (?:option )?\(?[A-J]\b\)?){0,9}"
_EXCLUDED = re.compile(
    rf"{_NO}(?: (?:be|is|it|options?|choice|the answer)){{0,3}} (?P<after>{_LIST})(?!\w)"
    rf"|(?<!\w)(?P<before>{_LIST}){_DENIED.pattern}",
)


@dataclass(frozen=True, slots=True)
class Said:
    """What a window says: the letter it affirms, or that it wavers; and letters that it denies."""

    letter: str | None = None
    unclear: bool = False
    denied: frozenset[str] = frozenset()


def read(window: Window) -> Said:
    """Letters that stand by themselves; of several, the first may still be named as the answer."""
    text, found, denied = window.text, [], set()
    for match in _LETTER.finditer(text):
        if not _is_option(match, text):
            continue
        letter = match["letter"].upper()
        if _NEGATED.search(text[: match.start()][-40:]) or _DENIED.match(text, match.end()):
            denied.add(letter)
        else:
            found.append((letter, match.end()))
    letters = {letter for letter, _ in found}
    if len(letters) == 1:
        return Said(letters.pop(), denied=frozenset(denied))
    if letters and window.strong and not _ALTERNATIVE.match(text, found[0][1]):
        return Said(found[0][0], denied=frozenset(denied))
    return Said(unclear=bool(letters) and not denied, denied=frozenset(denied))


def _is_option(match: re.Match[str], text: str) -> bool:
    if match["open"] or match["close"]:
        return True
    letter, behind = match["letter"], text[match.end() :].lstrip()
    if letter in "AI" or letter.islower():  # an article, a pronoun, a variable
        return not behind or (letter.isupper() and behind.startswith((*".,;:/", "or ", "and ")))
    return True


def stated(window: Window, *, labelled: bool) -> Said:
    """The letter that a cue such as `B is correct` contains, unless it is doubted or, where options
    are called `Lamp B`, no option's."""
    doubted = _DOUBTED.search(window.before)
    lamp = labelled and not _AN_OPTION.search(window.before)
    return Said(None if doubted or lamp else window.stated)


def alone(thinking: str) -> set[str]:
    """The letters that stand by themselves anywhere."""
    return set(_ALONE.findall(thinking))


def excluded(thinking: str) -> set[str]:
    """The letters that are denied anywhere, `neither A nor B` or `C and D are out`."""
    return {
        letter
        for match in _EXCLUDED.finditer(thinking)
        for letter in re.findall(r"\b[A-J]\b", match["after"] or match["before"])
    }
