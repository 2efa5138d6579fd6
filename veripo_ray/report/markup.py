"""Model output as HTML: everything escaped, so that `<think>` is seen and nothing is obeyed."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from markupsafe import Markup, escape

MAX_CHARACTERS = 12_000  # of one response; what is left out is said
TAG = re.compile(r"&lt;/?(?:think|answer)&gt;")
# Control characters that HTML forbids, and halves of surrogate pairs that UTF-8 cannot carry.
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def readable(text: str) -> str:
    """`text` with the characters that no page may hold replaced by U+FFFD."""
    return FORBIDDEN.sub("\ufffd", text)


def response(text: str) -> Markup:
    """A response with its tags tinted."""
    shown, left_out = _shortened(text)
    return _tinted(escape(shown)) + left_out


def compared(chosen: str, rejected: str) -> tuple[Markup, Markup]:
    """Both sides of a pair, the words that only one of them has marked."""
    (left, left_rest), (right, right_rest) = _shortened(chosen), _shortened(rejected)
    left_words, right_words = _words(left), _words(right)
    matcher = SequenceMatcher(
        None, [w.strip() for w in left_words], [w.strip() for w in right_words], autojunk=True
    )
    blocks = matcher.get_matching_blocks()
    left_html = _marked(left_words, [(b.a, b.size) for b in blocks])
    right_html = _marked(right_words, [(b.b, b.size) for b in blocks])
    return left_html + left_rest, right_html + right_rest


def _shortened(text: str) -> tuple[str, Markup]:
    clean = readable(text)
    rest = len(clean) - MAX_CHARACTERS
    if rest <= 0:
        return clean, Markup("")
    note = Markup('<span class="rest">… {:,} more characters are in the journal</span>')
    return clean[:MAX_CHARACTERS], note.format(rest)


def _words(text: str) -> list[str]:
    """Words with the space behind them; joined they give `text` again."""
    return re.findall(r"\S+\s*|^\s+", text)


def _marked(words: list[str], shared: list[tuple[int, int]]) -> Markup:
    """Joins words, with those outside the shared (start, length) blocks inside <mark>."""
    parts, at = [], 0
    for start, length in shared:
        if at < start:
            parts.append(_mark("".join(words[at:start])))
        parts.append(_tinted(escape("".join(words[start : start + length]))))
        at = start + length
    return Markup("").join(parts)


def _mark(text: str) -> Markup:
    body = text.rstrip()
    return Markup("<mark>{}</mark>{}").format(_tinted(escape(body)), text[len(body) :])


def _tinted(escaped: Markup) -> Markup:
    return Markup(TAG.sub(lambda tag: f'<span class="tag">{tag.group()}</span>', str(escaped)))
