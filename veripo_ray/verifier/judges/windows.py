"""Where a chain of thought may conclude something, and whether it takes that back.

A *cue* (`so`, `the answer is`, `\\boxed`, `B is correct`) announces a conclusion; the *window*
behind it, up to the end of the sentence or the next turn of the chain, is what is read. Linear in
the text: no pattern here can match more than a few words, and the rest are searches.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

# Each begins a word, which is checked once and first.
_STRONG = (
    r"(?:answer|option|choice|conclusion|result|total|value)(?: here)?"
    r"(?: is| must be| should be| would be| was|:)(?: therefore| thus| clearly| simply)?"
    r"|(?:choose|pick|select|go with|answer with|guess(?: is|:)"
    r"|i(?: would|['\u2019]d) (?:say|estimate)|i estimate|my (?:estimate|count)(?: is)?)\b"
    r"|(?:that|this|which|it)(?: is| would be| must be|['\u2019]s) (?=option |choice )"
    r"|(?:matches|corresponds to|leaves(?: only| us with)?|leaving(?: only)?)"
    r"(?= (?:option |choice )?[(*]{0,3}(?-i:[A-J])\b)"
)
_WEAK = (
    r"(?:so(?! (?:that|far|much|many|called|long|on)\b)|therefore|thus|hence|consequently"
    r"|conclude(?: that)?|it follows that|in (?:total|summary|the end)|all in all|altogether"
    r"|overall|all things considered|(?:which|this|that) means(?: that)?|to sum up)\b"
)
_STATED = (
    r"(?P<stated>[A-J])(?=\W{0,3}\s(?:(?:is|must be|seems) (?:the )?"
    r"(?:most likely|correct|right|best|true|only|answer)|(?:describes|matches|fits)\b))"
)
_CUE = re.compile(rf"(?P<boxed>\\boxed\{{)|(?<!\w)(?:{_STATED}|(?i:(?P<strong>{_STRONG})|{_WEAK}))")
# What ends a window: the sentence, a turn of thought, or (tiny world) a look at another frame.
_TURN = re.compile(
    r"[.!?;](?=\s|$)|\n|\bf\d+\b|\b(?:wait|however|but|because|since|hmm|although|whereas)\b",
    re.IGNORECASE,
)
_RECONSIDERS = re.compile(
    r"\b(?:wait|hmm+|actually|hold on|on second thought|on closer look)\b"
    r"|\b(?:let me|let['\u2019]s|i['\u2019]ll|i should) "
    r"(?:re-?|double[- ]?)?(?:check|verify|examine|consider)\b"
    r"|[.!?\n]\s{0,3}(?:but|however|no,)\s",
    re.IGNORECASE,
)
_CONFIRMS = re.compile(
    r"\b(?:yes|indeed|confirm(?:s|ed)?|consistent with|as expected|fits|still (?:holds|stands)"
    r"|holds|matches|agrees|(?:that|this|it|which) is (?:correct|right))\b",
    re.IGNORECASE,
)
_BOUNDARY = re.compile(r"[.!?](?=\s)|\n")
_SUPPOSES = re.compile(
    r"\b(?:if|would|could|might|may|maybe|perhaps|whether|unless|tempting|seem(?:s|ed)?|think)\b",
    re.IGNORECASE,
)
_WINDOW, _SENTENCE, _MAX_CUES = 160, 240, 64
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
    for cue in reversed(deque(_CUE.finditer(thinking), maxlen=_MAX_CUES)):
        text = thinking[cue.end() : cue.end() + _WINDOW]
        boxed = cue["boxed"] is not None
        if boxed:
            text = _balanced(text)
        elif turn := _TURN.search(text):
            text = text[: turn.start()]
        end = cue.end() + len(text)
        yield Window(
            text=text,
            span=(cue.start(), end),
            strong=boxed or cue["strong"] is not None,
            last=not thinking[end : end + _WINDOW].strip(" \n\t.!}$*"),
            stated=cue["stated"],
            before=thinking[max(0, cue.start() - 30) : cue.start()],
            behind=_next_sentences(thinking[end : end + 2 * _WINDOW]),
            boxed=boxed,
        )


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
