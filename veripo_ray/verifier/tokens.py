"""How many tokens a text has, by a checkpoint's own tokenizer."""

from __future__ import annotations

from pathlib import Path

from veripo_ray.errors import CheckpointError
from veripo_ray.verifier.checks import CountTokens, count_words


def counter(checkpoint: str | None) -> CountTokens:
    """Counts by `checkpoint`/tokenizer.json, or by white space when there is no checkpoint."""
    if checkpoint is None:
        return count_words
    from tokenizers import Tokenizer

    path = Path(checkpoint) / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"there is no {path}", fix="give a folder in Hugging Face layout")
    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))
