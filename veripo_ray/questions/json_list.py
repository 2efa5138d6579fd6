"""The values of a JSON list, one at a time, from a text that comes in pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
_LONGEST_TOKEN = 16  # characters of -Infinity or \uD83D\uDE00, which the end of a piece may cut
_CUT_NUMBER = 2  # characters of "e-" behind a number whose other digits are in the next piece


def values(pieces: Iterator[str]) -> Iterator[Any]:
    """Each value of the one list that `pieces` spell, as json.loads would read it.

    Raises ValueError for a text that is not exactly one list, where its fault is found: values
    before it have been given by then.
    """
    text = _Text(pieces)
    text.expect("[")
    if text.peek() == "]":
        text.expect("]")
    else:
        yield text.value()
        while text.expect(",", "]") == ",":
            yield text.value()
    if text.peek():
        raise ValueError(f"Extra data: char {text.place}")


class _Text:
    """What has been read and not yet used, and how to read on."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces, self._decoder = pieces, json.JSONDecoder()
        self._text, self._at, self._before = "", 0, 0

    @property
    def place(self) -> int:
        """Characters used so far, counted from the beginning of the file."""
        return self._before + self._at

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def expect(self, *wanted: str) -> str:
        found = self.peek()
        if found not in wanted:
            raise ValueError(f"Expecting {' or '.join(map(repr, wanted))}: char {self.place}")
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value, whole: one that ends (nearly) where the text does may go on."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._may_be_cut(error) and self._more():
                    continue
                raise ValueError(f"{error.msg}: char {self._before + error.pos}") from None
            if end < len(self._text) - _CUT_NUMBER or not self._more():
                self._at = end
                return value

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        near_the_end = error.pos >= len(self._text) - _LONGEST_TOKEN
        return near_the_end or error.msg.startswith("Unterminated string")

    def _more(self) -> bool:
        """Read on, at least as much as is waiting, so that a long value costs no more than twice
        its length; False at the end."""
        waiting = self._text[self._at :]
        parts, length = [waiting], 0
        while length <= len(waiting) and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            length += len(piece)
        if not length:
            return False
        self._before += self._at
        self._text, self._at = "".join(parts), 0
        return True
