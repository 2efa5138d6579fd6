"""The conclusion that a chain of thought states: a letter, a number or a formula.

The last *window* (see `windows`) that can be read counts, since a chain may reconsider. Where it
does so behind that window, its last sentence must say what became of it, or confirm it; otherwise
nothing is concluded. Undecided is better than wrong. Bounded in time whatever the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

from veripo_ray.records import Kind
from veripo_ray.verifier.judges import quantities, windows
from veripo_ray.verifier.judges.choices import Options
from veripo_ray.verifier.judges.letters import Said
from veripo_ray.verifier.judges.windows import Window

_FORMULA = re.compile(r"\$\$?([^$]{1,200})\$|\\\((.{1,200}?)\\\)|\\\[(.{1,200}?)\\\]", re.DOTALL)
_NOT_PLAIN = re.compile(r"[\\^_\u221a\u03c0]|\bpi\b|\bsqrt\b")
_JOINED = re.compile(r"[\s,]*(?:and|or)?[\s,]*")
_LEADS = re.compile(
    r"(?:=|\b(?:is|are|was|be|equals?|gives?|gets?|obtains?|yields|to|for|value|namely))"
    r" ?(?:simply |just )?$"
)
_REACH = 1 << 15  # characters at the end of a chain: what it says earlier is no conclusion
_MAX_BEHIND = 3  # words behind a formula that a sentence without a cue ends on


@dataclass(frozen=True, slots=True)
class Conclusion:
    """value: an upper-case letter, a number, or LaTeX; span: [start, end) of cue and window; unit:
    a number's, where it can be converted."""

    value: str
    span: tuple[int, int]
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class _Read:
    value: str | None = None
    unit: str | None = None
    unclear: bool = False
    denied: frozenset[str] = frozenset()


_Reader = Callable[[Window], _Read]


def find(thinking: str, kind: Kind, options: tuple[str, ...]) -> Conclusion | None:
    """The conclusion of this kind that the chain finally reaches, or None."""
    start = max(0, len(thinking) - _REACH)
    found = _find_in(thinking[start:], kind, options)
    if found is None or start == 0:
        return found
    return replace(found, span=(found.span[0] + start, found.span[1] + start))


def _find_in(thinking: str, kind: Kind, options: tuple[str, ...]) -> Conclusion | None:
    match kind:
        case Kind.CHOICE:
            known = Options.of(options)
            found = _find(thinking, lambda window: _of_choice(known.read(window)))
            if found is None and (letter := known.remaining(thinking)):
                return Conclusion(letter, (0, len(thinking)))
            return found
        case Kind.NUMERIC:
            return _find(thinking, _read_number)
        case Kind.MATH:
            return _find(thinking, _read_formula)


def _find(thinking: str, read: _Reader) -> Conclusion | None:
    denied: frozenset[str] = frozenset()
    for window in windows.windows(thinking):
        said = read(window)
        if said.unclear or said.value in denied:
            return None
        if said.value is not None:
            found = Conclusion(said.value, window.span, said.unit)
            return _settled(thinking, found, window.strong, read)
        denied |= said.denied
    return _closing(thinking, 0, read)


def _settled(thinking: str, found: Conclusion, strong: bool, read: _Reader) -> Conclusion | None:
    """`found`, or what the chain comes to behind it."""
    closing = _closing(thinking, found.span[1], read)
    turn = windows.afterthought(thinking, found.span[1])
    if turn is None:
        changed = closing is not None and closing.value != found.value
        return None if changed and not strong else found
    return closing or (found if windows.confirms(thinking, turn) else None)


def _closing(thinking: str, behind: int, read: _Reader) -> Conclusion | None:
    """What the last sentence says without a cue."""
    sentence = windows.last_sentence(thinking, behind)
    said = read(sentence) if sentence else _Read()
    if sentence is None or said.value is None:
        return None
    return Conclusion(said.value, sentence.span, said.unit)


def _of_choice(said: Said) -> _Read:
    return _Read(said.letter, unclear=said.unclear, denied=said.denied)


def _read_number(window: Window) -> _Read:
    if window.cued:
        quantity = quantities.announced(window.text, strong=window.strong)
    else:
        quantity = quantities.said_last(window.text)
    if quantity is None or (not window.strong and quantities.others(window.behind, quantity)):
        return _Read()  # the count goes on behind a `so 3`
    return _Read(repr(quantity.value).removesuffix(".0"), quantity.unit)


def _read_formula(window: Window) -> _Read:
    if window.boxed:
        return _Read(window.text.strip() or None)
    found = list(_FORMULA.finditer(window.text))
    if not found:  # a number in passing is no result
        passing = window.cued and not (window.strong or window.last)
        return _Read() if passing or _NOT_PLAIN.search(window.text) else _read_number(window)
    if any(_JOINED.fullmatch(window.text, a.end(), b.start()) for a, b in pairwise(found)):
        return _Read(unclear=True)  # a set of values
    last = found[-1]
    leads = _LEADS.search(window.text[: last.start()][-30:]) or "=" in last[0]
    if not leads and (len(found) > 1 or not window.cued):
        return _Read()
    if not window.cued and len(window.text[last.end() :].split()) > _MAX_BEHIND:
        return _Read()
    return _Read((last[1] or last[2] or last[3]).strip() or None)
