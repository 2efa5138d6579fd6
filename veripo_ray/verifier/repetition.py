"""How much of a text repeats itself: loops of a few words, and passages that return.

Two things count as repeated. A *loop*: at most `4 n` words three times or more in a row, counted
from its second round on. A *returning passage*: `n` words in a row that were already there twice,
counted from the third time on. Saying something twice is not repetition: a chain that reconsiders
and goes through the evidence again does exactly that. Linear in the text, up to a sort.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

# Long unbroken runs are cut in pieces, so that `hahaha...` and unspaced scripts loop like words do.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w{1,24}|[^\w\s]")
_MAX_SPANS = 8


@dataclass(frozen=True, slots=True)
class Repetition:
    """share [0, 1] of the words that repeat earlier ones; spans of characters, longest first."""

    share: float
    spans: tuple[tuple[int, int], ...]


def repetition(text: str, n: int = 8) -> Repetition:
    words = _WORD.findall(text)
    if len(words) < 3:
        return Repetition(0.0, ())
    numbering: defaultdict[str, int] = defaultdict(lambda: len(numbering))
    ids_W = np.fromiter((numbering[word] for word in words), np.int64, len(words))
    repeated_W = _loops(ids_W, n) | _returns(ids_W, n)
    if not repeated_W.any():
        return Repetition(0.0, ())
    return Repetition(float(repeated_W.mean()), _spans(text, repeated_W))


def _loops(ids_W: np.ndarray, n: int) -> np.ndarray:
    """Words inside the second and later rounds of a loop of at most 4 n words."""
    marked_W = np.zeros(len(ids_W), bool)
    for period in range(1, min(4 * n, len(ids_W) // 3) + 1):
        same = ids_W[period:] == ids_W[:-period]
        if np.count_nonzero(same) < 2 * period:
            continue  # the usual case, for little
        for start, end in _runs(same):
            if end - start >= 2 * period:  # three rounds
                marked_W[start + period : end + period] = True
    return marked_W


def _returns(ids_W: np.ndarray, n: int) -> np.ndarray:
    """Words inside n-grams that occur for the third time or more."""
    marked_W = np.zeros(len(ids_W), bool)
    if len(ids_W) <= 2 * n:  # three occurrences that hardly overlap do not fit
        return marked_W
    grams_N = _ngram_ids(ids_W, n)
    order_N = np.argsort(grams_N, kind="stable")
    third_N = np.zeros(len(grams_N), bool)
    third_N[order_N[2:]] = grams_N[order_N[2:]] == grams_N[order_N[:-2]]
    for start, end in _runs(third_N):
        marked_W[start : end - 1 + n] = True
    return marked_W


def _ngram_ids(ids_W: np.ndarray, n: int) -> np.ndarray:
    """One number for each n-gram, equal exactly where the n-grams are: built by doubling, an
    n-gram being two shorter ones side by side or overlapping."""
    grams, length = ids_W, 1
    while length < n:
        shift = min(length, n - length)
        pairs = grams[:-shift] * (int(grams.max()) + 1) + grams[shift:]
        grams, length = np.unique(pairs, return_inverse=True)[1], length + shift
    return grams


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of every run of True."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _spans(text: str, repeated_W: np.ndarray) -> tuple[tuple[int, int], ...]:
    bounds = [match.span() for match in _WORD.finditer(text)]
    runs = [(bounds[start][0], bounds[end - 1][1]) for start, end in _runs(repeated_W)]
    return tuple(sorted(runs, key=lambda run: run[0] - run[1])[:_MAX_SPANS])
