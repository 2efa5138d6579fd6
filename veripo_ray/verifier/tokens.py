"""The tokens of a text, by a checkpoint's own tokenizer or by white space."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from veripo_ray.errors import CheckpointError
from veripo_ray.verifier.checks import CountTokens, count_words

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Encode = Callable[[str], np.ndarray]  # text to token ids [R]


def counter(checkpoint: str | None) -> CountTokens:
    """Counts by `checkpoint`/tokenizer.json, or by white space when there is no checkpoint."""
    if checkpoint is None:
        return count_words
    tokenizer = _tokenizer(checkpoint)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def encoder(checkpoint: str | None) -> Encode:
    """Token ids [R] int32 by `checkpoint`/tokenizer.json. Without one a word's digest is its id:
    enough to count tokens and to tell texts apart, which is all that pairs of texts need."""
    if checkpoint is None:
        return _words
    tokenizer = _tokenizer(checkpoint)
    return lambda text: np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def _words(text: str) -> np.ndarray:
    digests = (zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in text.split())
    return np.array([digest & 0x7FFFFFFF for digest in digests], np.int32)


@lru_cache(maxsize=4)
def _tokenizer(checkpoint: str) -> Tokenizer:
    from tokenizers import Tokenizer

    path = Path(checkpoint) / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"there is no {path}", fix="give a folder in Hugging Face layout")
    return Tokenizer.from_file(str(path))
