"""Text as a vector of words, in numpy from end to end: a megabyte takes milliseconds.

A word is a run of letters and digits, a character of a script that is written without spaces, or
one mark of punctuation. Long unbroken runs are cut in pieces, so that `hahaha...` loops like words
do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

PIECE = 24  # characters of a run that count as one word
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")  # kana, han, hangul
_SPACE, _SINGLE, _RUN = 0, 1, 2
_CHARACTERS = 0x110000
BASE = np.uint64(0x9E3779B97F4A7C15)  # of the rolling hashes: odd, without a pattern
_KEPT = 1 << 20
_MANY = 1 << 14  # characters, from which on memory decides, and not the number of steps


@dataclass(frozen=True, slots=True)
class Words:
    """Word w is the characters [starts[w], ends[w]). ids [W] uint64 are equal where words are, and
    differ where they differ, but for a collision of hashes: once in 10^7 texts of a megabyte."""

    starts: np.ndarray
    ends: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, first: int, end: int, place: int) -> Words:
        """The words from `first` on to `end`, of a text that begins at the character `place`."""
        some = slice(first, end)
        return Words(self.starts[some] - place, self.ends[some] - place, self.ids[some])


def words(text: str) -> Words:
    codes_C = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds_C = _kinds().take(codes_C)
    runs_C = kinds_C == _RUN
    if not runs_C.any():  # every word is one character
        starts_W = np.flatnonzero(kinds_C)
        return Words(starts_W, starts_W + 1, _mixed(_of_one(codes_C, starts_W)))
    starts_W, ends_W = _bounds(kinds_C == _SINGLE, runs_C)
    if len(codes_C) < _MANY:
        return Words(starts_W, ends_W, _mixed(_of_several(codes_C, starts_W, ends_W)))
    ids_W = _of_one(codes_C, starts_W)
    long = np.flatnonzero(ends_W - starts_W > 1)
    ids_W[long] = _of_several(codes_C, starts_W[long], ends_W[long])
    return Words(starts_W, ends_W, _mixed(ids_W))


def _of_one(codes_C: np.ndarray, starts_W: np.ndarray) -> np.ndarray:
    """What `_of_several` gives for words of one character."""
    return codes_C.take(starts_W) * _powers(len(codes_C))[-1]


def _of_several(codes_C: np.ndarray, starts_W: np.ndarray, ends_W: np.ndarray) -> np.ndarray:
    sums, size = _sums(codes_C), len(codes_C)
    ids_W = sums.take(ends_W)
    ids_W -= sums.take(starts_W)
    ids_W *= _powers(size).take(size - starts_W)
    return ids_W


def _mixed(ids_W: np.ndarray) -> np.ndarray:
    """So that the hash of a hash shares no structure with it."""
    ids_W ^= ids_W >> np.uint64(31)
    return ids_W


def ngrams(ids_W: np.ndarray, n: int) -> np.ndarray:
    """[W - n + 1] uint64, equal where n words in a row are; of no words where there are fewer."""
    sums, size = _sums(ids_W), len(ids_W)
    grams_N = sums[n:] - sums[:-n]
    grams_N *= _powers(size)[size : n - 1 : -1]
    return grams_N


def _bounds(single_C: np.ndarray, run_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first_C, last_C = run_C.copy(), run_C.copy()
    first_C[1:] &= ~run_C[:-1]
    last_C[:-1] &= ~run_C[1:]
    starts, ends = np.flatnonzero(first_C | single_C), np.flatnonzero(last_C | single_C) + 1
    return _cut(starts, ends) if len(starts) and (ends - starts).max() > PIECE else (starts, ends)


def _cut(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pieces = -(-(ends - starts) // PIECE)
    before = np.repeat(np.cumsum(pieces) - pieces, pieces)
    cut = np.repeat(starts, pieces) + PIECE * (np.arange(len(before)) - before)
    return cut, np.minimum(cut + PIECE, np.repeat(ends, pieces))


def _sums(values: np.ndarray) -> np.ndarray:
    """Sums before each place, and of all, of values[i] base^i modulo 2^64. A difference of two,
    times base^(size - start), is a hash of what lies between them, wherever that is."""
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * _powers(len(values))[:-1], out=sums[1:])
    return sums


def _powers(size: int) -> np.ndarray:
    """base^0 to base^size modulo 2^64."""
    return _kept_powers()[: size + 1] if size <= _KEPT else _computed_powers(size)


@lru_cache(maxsize=1)
def _kept_powers() -> np.ndarray:
    """Enough for a megabyte of text, in 8 MB."""
    return _computed_powers(_KEPT)


def _computed_powers(size: int) -> np.ndarray:
    powers = np.full(size + 1, BASE)
    powers[0] = 1
    return np.multiply.accumulate(powers, out=powers)


@lru_cache(maxsize=1)
def _kinds() -> np.ndarray:
    """What each character of Unicode is, as Python's regular expressions see it. 1 MB."""
    every = np.arange(_CHARACTERS, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    kinds = np.full(_CHARACTERS, _SINGLE, np.uint8)
    for pattern, kind in ((r"\s+", _SPACE), (r"\w+", _RUN), (_UNSPACED, _SINGLE)):
        for match in re.finditer(pattern, every):
            kinds[match.start() : match.end()] = kind
    return kinds
