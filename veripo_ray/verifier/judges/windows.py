"""Where a chain of thought may conclude something, and whether it takes that back.

A *cue* (`so`, `the answer is`, `\\boxed`, `B is correct`) announces a conclusion; the *window*
behind it, up to the end of the sentence or the next turn of the chain, is what is read. Linear in
the text: no pattern here can match more than a few words, and the rest are searches.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from veripo_ray.verifier.judges.patterns import any_case, each

# Each begins a word, which is checked once and first.
_STRONG = (
    *each(
        "answer|option|choice|conclusion|result|total|value",
        r"(?: here)?(?: is| must be| should be| would be| was|:)"
        r"(?: therefore| thus| clearly| simply)?",
    ),
    *each("choose|pick|select|go with|answer with|guess is|guess:|i estimate"),
    *each("i would|i['\u2019]d", " (?:say|estimate)\\b"),
    *each("my estimate|my count", r"(?: is)?\b"),
    *each("that|this|which|it", "(?: is| would be| must be|['\u2019]s) (?=option |choice )"),
    *each(
        "matches|corresponds to|leaves only|leaves us with|leaves|leaving only|leaving",
        r"(?= (?:option |choice )?[(*]{0,3}(?-i:[A-J])\b)",
    ),
)
_WEAK = (
    r"so\b(?! (?:that|far|much|many|called|long|on)\b)",
    *each("therefore|thus|hence|consequently|it follows that|in total|in summary|in the end"),
    *each("conclude that|conclude|all in all|altogether|overall|all things considered|to sum up"),
    *each("which means|this means|that means", r"(?: that)?\b"),
)
_STATED = (
    r"[A-J](?=\W{0,3}\s(?:(?:is|must be|seems) (?:the )?"
    r"(?:most likely|correct|right|best|true|only|answer)|(?:describes|matches|fits)\b))"
)
_BOXED = "\\boxed{"
_CUE = re.compile(rf"{re.escape(_BOXED)}|(?<!\w)(?:{_STATED}|{any_case(*_STRONG, *_WEAK)})")
_IS_STRONG = re.compile(any_case(*_STRONG))
# What ends a window: the sentence, a turn of thought, or (tiny world) a look at another frame.
_TURN_WORDS = any_case(*each(r"f\d+|wait|however|but|because|since|hmm|although|whereas"))
_TURN = re.compile(rf"[.!?;](?=\s|$)|\n|\b{_TURN_WORDS}")
_AFTERTHOUGHT = any_case(
    *each("wait|hmm+|actually|hold on|on second thought|on closer look"),
    *each(
        "let me|let['\u2019]s|i['\u2019]ll|i should",
        r" (?:re-?|double[- ]?)?(?:check|verify|examine|consider)\b",
    ),
)
_RECONSIDERS = re.compile(rf"\b{_AFTERTHOUGHT}|[.!?\n]\s{{0,3}}(?i:but|however|no,)\s")
_CONFIRMS = re.compile(
    r"\b(?:yes|indeed|confirm(?:s|ed)?|consistent with|as expected|fits|still (?:holds|stands)"
    r"|holds|matches|agrees|(?:that|this|it|which) is (?:correct|right))\b",
    re.IGNORECASE,
)
_BOUNDARY = re.compile(r"[.!?\n](?:(?<=\n)|(?=\s))")  # a set first: the engine searches for it
_SUPPOSES = re.compile(
    rf"\b{any_case(*each('if|would|could|might|may|maybe|perhaps|whether|unless|tempting'))}"
    r"|\b(?i:seem(?:s|ed)?|think)\b"
)
_WINDOW, _SENTENCE, _MAX_CUES = 160, 240, 64
_STEP = 64  # characters, more than a cue and what it looks at behind itself
_MIN_AFTERTHOUGHT = 3  # words


@dataclass(frozen=True, slots=True)
class Window:
    """span: [start, end) of cue and text. strong: the cue names the answer as such. last: nothing
    but white space comes behind it. stated: the letter, where the cue contains it. before: the few
    characters in front of the cue. behind: the beginning of the sentences that follow its own.
    cued: False for a last sentence that announces nothing."""

    text: str
    span: tuple[int, int]
    strong: bool = False
    last: bool = False
    stated: str | None = None
    before: str = ""
    behind: str = ""
    boxed: bool = False
    cued: bool = True


def windows(thinking: str) -> Iterator[Window]:
    """The windows of the last cues, last first."""
    for cue in islice(_cues(thinking), _MAX_CUES):
        text = thinking[cue.end() : cue.end() + _WINDOW]
        boxed = cue[0] == _BOXED
        if boxed:
            text = _balanced(text)
        elif turn := _TURN.search(text):
            text = text[: turn.start()]
        end = cue.end() + len(text)
        yield Window(
            text=text,
            span=(cue.start(), end),
            strong=boxed or _IS_STRONG.match(thinking, cue.start()) is not None,
            last=not thinking[end : end + _WINDOW].strip(" \n\t.!}$*"),
            stated=cue[0] if len(cue[0]) == 1 else None,
            before=thinking[max(0, cue.start() - 30) : cue.start()],
            behind=_next_sentences(thinking[end : end + 2 * _WINDOW]),
            boxed=boxed,
        )


def _cues(thinking: str) -> Iterator[re.Match[str]]:
    """Last first, from ever longer pieces: who reads a chain from its end seldom wants them all.
    A piece begins behind a character that no cue holds, so it has those of the whole text."""
    end, step = len(thinking), _STEP
    while end > 0:
        start = _behind_a_mark(thinking, end - step) if end > step else 0
        found = _CUE.finditer(thinking, start, end + _STEP)
        yield from reversed([cue for cue in found if cue.start() < end])
        end, step = start, 4 * step


def _behind_a_mark(text: str, limit: int) -> int:
    """The last place up to `limit` that a mark or a line's end stands before."""
    dot, comma, line = (text.rfind(mark, 0, limit) for mark in ".,\n")
    return 1 + max(dot, comma, line)


def last_sentence(thinking: str, behind: int) -> Window | None:
    """The sentence at the end, which may conclude without a cue; None where it only supposes
    something, or is the one that the offset `behind` lies in."""
    end = len(thinking.rstrip())
    first = max(behind, end - _SENTENCE)
    tail = thinking[first : end - 1]
    boundaries = [match.end() for match in _BOUNDARY.finditer(tail)]
    if not boundaries and first > 0:
        return None  # it began further in front
    start = first + (boundaries[-1] if boundaries else 0)
    text = thinking[start:end]
    if not text.strip() or _SUPPOSES.search(text):
        return None
    return Window(text.rstrip(".!"), (start, end), last=True, cued=False)


def afterthought(thinking: str, behind: int) -> int | None:
    """Where a chain starts to reconsider what it said before the offset `behind`, or None."""
    turn = _RECONSIDERS.search(thinking, behind)
    if turn is None or len(thinking[turn.end() :].split(None, 3)) < _MIN_AFTERTHOUGHT:
        return None
    return turn.end()


def confirms(thinking: str, behind: int) -> bool:
    return _CONFIRMS.search(thinking, behind) is not None


def _next_sentences(text: str) -> str:
    boundary = _BOUNDARY.search(text)
    return text[boundary.end() :] if boundary else ""


def _balanced(text: str) -> str:
    """`text` up to the brace that closes the one before it."""
    depth = 1
    for at, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[:at]
    return text
