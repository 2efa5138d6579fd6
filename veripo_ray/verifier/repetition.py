"""How much of a text repeats itself: loops of a few words, and passages that return.

Two things count as repeated. A *loop*: at most `4 n` words three times or more in a row, counted
from its second round on. A *returning passage*: `n` words in a row that were already there twice,
counted from the third time on. Saying something twice is not repetition: a chain that reconsiders
and goes through the evidence again does exactly that. Linear in the text, up to a sort.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from veripo_ray.verifier.words import BASE, Words, ngrams, words

_MAX_SPANS = 8
_MANY = 1 << 14
_BATCH = 1 << 16  # characters


@dataclass(frozen=True, slots=True)
class Repetition:
    """share [0, 1] of the words that repeat earlier ones; spans of characters, longest first."""

    share: float
    spans: tuple[tuple[int, int], ...]


_NONE = Repetition(0.0, ())


def repetition(text: str, n: int = 8) -> Repetition:
    found = words(text)
    return _told(found, _repeated(found.ids, n))


def repetitions(texts: Sequence[str], n: int = 8) -> list[Repetition]:
    """As `repetition` of each, for a fraction of the time where texts are short: numpy's steps are
    taken for many at once."""
    return [one for few in _together(texts) for one in _of_several(few, n)]


def _together(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in turn, of `_BATCH` characters or less together; a longer one alone."""
    few: list[str] = []
    size = 0
    for text in texts:
        if few and size + len(text) > _BATCH:
            yield few
            few, size = [], 0
        few.append(text)
        size += len(text)
    if few:
        yield few


def _of_several(texts: Sequence[str], n: int) -> list[Repetition]:
    """The texts as one, in which no word of one is a word of another: so no loop and no passage
    reaches over two."""
    if len(texts) == 1:
        return [repetition(texts[0], n)]
    found = words("\n".join(texts))
    places_T = np.cumsum([0, *(1 + len(text) for text in texts)])
    firsts_T = np.searchsorted(found.starts, places_T)
    found.ids[:] ^= np.repeat(_marks(len(texts)), np.diff(firsts_T))
    repeated_W = _repeated(found.ids, n)
    if not repeated_W.any():
        return [_NONE] * len(texts)
    cuts = zip(pairwise(firsts_T.tolist()), places_T[:-1].tolist(), strict=True)
    return [_told(found.cut(a, b, place), repeated_W[a:b]) for (a, b), place in cuts]


def _marks(texts: int) -> np.ndarray:
    """A number of each text, without a pattern."""
    return np.multiply.accumulate(np.full(texts, BASE))


def _told(found: Words, repeated_W: np.ndarray) -> Repetition:
    if not repeated_W.any():
        return _NONE
    return Repetition(float(repeated_W.mean()), _spans(found, repeated_W))


def _repeated(ids_W: np.ndarray, n: int) -> np.ndarray:
    """Three rounds of `n / 2` words or more hold some n-gram twice. So where none returns, which a
    sort shows, only the shortest loops are there to find, and they come first."""
    marked_W = np.zeros(len(ids_W), bool)
    short = (n - 1) // 2
    _mark_loops(marked_W, ids_W, 1, short)
    if marked_W[2:].all():  # what else returns does so from the third word on
        return marked_W
    grouped = _grouped(ngrams(ids_W, n))
    if grouped is not None:
        _mark_returns(marked_W, *grouped, n)
        # A loop that marks a word is over two rounds of it behind that word.
        unmarked = len(ids_W) - int(marked_W[::-1].argmin())  # up to the last such word
        far = unmarked + 8 * n
        _mark_loops(marked_W[:far], ids_W[:far], short + 1, 4 * n)
    return marked_W


def _mark_loops(marked_W: np.ndarray, ids_W: np.ndarray, shortest: int, longest: int) -> None:
    """Words inside the second and later rounds of loops of `shortest` to `longest` words."""
    few_bits_W = ids_W.view(np.uint16)[::4].copy() if len(ids_W) > _MANY else ids_W
    for period in range(shortest, min(longest, len(ids_W) // 3) + 1):
        rounds = _rounds(ids_W, few_bits_W, period)
        if rounds is not None:
            marked_W[period:] |= _spread(rounds, 2 * period)
            if marked_W[period + 1 :].all():
                return  # a longer loop has nothing to add


def _rounds(ids_W: np.ndarray, few_bits_W: np.ndarray, period: int) -> np.ndarray | None:
    """Where two more rounds follow one of `period` words, by the second's first word. A few bits of
    each id are a fraction of the memory to go through, and tell in nearly every text."""
    alike = few_bits_W[period:] == few_bits_W[:-period]
    rounds = _all_of(2 * period, alike)
    if rounds is None or few_bits_W is ids_W:
        return rounds
    equal = ids_W[period:] == ids_W[:-period]
    return rounds if np.array_equal(alike, equal) else _all_of(2 * period, equal)


def _mark_returns(marked_W: np.ndarray, order_N: np.ndarray, grams_N: np.ndarray, n: int) -> None:
    """Words inside n-grams that occur for the third time or more."""
    third_N = np.zeros(len(order_N), bool)
    third_N[order_N[2:]] = grams_N[2:] == grams_N[:-2]
    marked_W |= _spread(third_N, n)


def _grouped(grams_N: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The places of the n-grams, equal ones side by side and in the order of the text, and the
    n-grams in that order; None where all differ.

    Places are sorted as the last bits of the hashes: ten times faster than a stable argsort, which
    is left for the rare text in which just those bits told n-grams apart.
    """
    places = np.uint64((1 << len(grams_N).bit_length()) - 1)
    keys_N = grams_N & ~places
    keys_N |= np.arange(len(grams_N), dtype=np.uint64)
    keys_N.sort()
    hashes_N = keys_N & ~places
    alike = hashes_N[1:] == hashes_N[:-1]
    if not alike.any():
        return None
    keys_N &= places
    order_N = keys_N.view(np.int64)
    ordered_N = grams_N.take(order_N)
    if (alike & (ordered_N[1:] != ordered_N[:-1])).any():
        order_N = np.argsort(grams_N, kind="stable")
        ordered_N = grams_N[order_N]
    return order_N, ordered_N


def _all_of(length: int, flags: np.ndarray) -> np.ndarray | None:
    """Where `length` flags in a row are set, by the first of them; None where nowhere."""
    blocks = (length - 7) // 8  # whole blocks of eight flags that so many hold
    if blocks > 0 and _all_of(blocks, _whole_blocks(flags)) is None:
        return None
    have = 1
    while np.count_nonzero(flags) > length - have:
        if have == length:
            return flags
        step = min(have, length - have)
        flags, have = flags[step:] & flags[:-step], have + step
    return None


def _whole_blocks(flags: np.ndarray) -> np.ndarray:
    return flags[: len(flags) // 8 * 8].view(np.uint64) == 0x0101010101010101


def _spread(flags: np.ndarray, length: int) -> np.ndarray:
    """`length` flags set from each that is set, the vector that much longer but for one."""
    spread = np.zeros(len(flags) + length - 1, bool)
    spread[: len(flags)] = flags
    have = 1
    while have < length:
        step = min(have, length - have)
        spread[step:] |= spread[:-step]
        have += step
    return spread


def _spans(found: Words, repeated_W: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The longest runs of repeated words, in characters; of equal ones the first."""
    edges = np.flatnonzero(np.diff(repeated_W, prepend=False, append=False))
    starts, ends = found.starts[edges[::2]], found.ends[edges[1::2] - 1]
    keys = np.arange(len(starts)) - ((ends - starts) << 32)
    if len(keys) > _MAX_SPANS:
        keys = np.partition(keys, _MAX_SPANS)[:_MAX_SPANS]
    runs = np.sort(keys) & 0xFFFFFFFF
    return tuple(zip(starts[runs].tolist(), ends[runs].tolist(), strict=True))
