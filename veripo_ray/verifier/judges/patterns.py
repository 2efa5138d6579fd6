"""Lists of phrases as regular expressions that pass over most of a text quickly."""

from __future__ import annotations


def any_case(*phrases: str) -> str:
    """Any of these patterns, in either case. Each begins with a letter.

    They are sorted by it, so that a word which begins none of them costs a look at one letter each
    instead of an attempt each: with `re.IGNORECASE` over a whole list that is most of the time.
    """
    by_letter: dict[str, list[str]] = {}
    for phrase in phrases:
        by_letter.setdefault(phrase[0].lower(), []).append(phrase[1:])
    branches = (
        f"[{letter}{letter.upper()}](?i:{'|'.join(rest)})" for letter, rest in by_letter.items()
    )
    return f"(?:{'|'.join(branches)})"


def each(words: str, behind: str = r"\b") -> list[str]:
    """`behind` put behind each of some alternatives, which `|` separates."""
    return [word + behind for word in words.split("|")]
