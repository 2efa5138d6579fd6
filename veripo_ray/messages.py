"""Texts that other trainers keep as a string or as a list of chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def text_of(said: Any) -> str:
    """The text itself, or that of the last of its messages; a message's parts are put together.

    Raises ValueError for anything else, and for half of a surrogate pair in it.
    """
    text = _text_of(said)
    text.encode()
    return text


def like(said: Any, text: str) -> Any:
    """`text` as an answer to the prompt `said`: a string to a string, a message to messages."""
    return text if isinstance(said, str) else [{"role": "assistant", "content": text}]


def _text_of(said: Any) -> str:
    if isinstance(said, str):
        return said
    if isinstance(said, Sequence) and said and isinstance(said[-1], Mapping):
        content = said[-1].get("content")
        if isinstance(content, str):
            return content
        if isinstance(content, Sequence):
            return "".join(map(_text_of_part, content))
    raise ValueError(f"{said!r:.60} is neither a text nor a list of messages")


def _text_of_part(part: Any) -> str:
    """A part that is an image or a video has no text."""
    return str(part.get("text") or "") if isinstance(part, Mapping) else ""
