"""What the formats of others have in common: lettered options, wrapped answers, media tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from veripo_ray.records import Kind
from veripo_ray.scoring.answers import LETTERS, number

_LETTERED = re.compile(r"\s*\(?([A-Z])\s*[.):\uff1a\u3001]\s*(.*)", re.DOTALL)
_HEADING = re.compile(r"(?:^|\n)\s*(?:options|choices)\s*:?\s*$", re.IGNORECASE)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_WRAPPINGS = (
    re.compile(r"\$\$(.*)\$\$|\$([^$]*)\$", re.DOTALL),
    re.compile(r"\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL),
    re.compile(r"\\(?:boxed|text|textbf|mathrm)\{(.*)\}", re.DOTALL),
)


def text_of(row: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that the row has, which must be a text."""
    value = first_of(row, *names)
    if not isinstance(value, str):
        raise ValueError(f"its {names[0]} is {value!r:.60}, not a text")
    return value


def first_of(row: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise ValueError(f"it has no field {' or '.join(map(repr, names))}")


def options(given: object) -> tuple[str, ...]:
    """Option texts in order, without letters, from a list or a mapping by letter.

    Letters go only where every option has its own: `A. A dog` among `B. A cat`, but not the
    initial of a lone `A. Milne`. `A. A. Apples`, as published for Video-MME, loses both.
    """
    if not given:
        return ()
    if isinstance(given, Mapping):
        texts = [str(given[key]) for key in sorted(given)]
    elif isinstance(given, Sequence) and not isinstance(given, str):
        texts = [str(option) for option in given]
    else:
        raise ValueError(f"options are {given!r:.60}, not a list")
    while (bare := _without_letters(texts)) is not None:
        texts = bare
    if not all(text.strip() for text in texts):
        raise ValueError("an option is empty")
    return tuple(text.strip() for text in texts)


def _without_letters(texts: Sequence[str]) -> list[str] | None:
    found = [_LETTERED.fullmatch(text) for text in texts]
    own = [match and match[1] == chr(ord("A") + k) for k, match in enumerate(found)]
    return [match[2] for match in found if match] if all(own) else None


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """A question and the lettered options that end it, one a line; no options: all of the text."""
    lines = text.rstrip().split("\n")
    for start in range(len(lines) - 1):
        tail = lines[start:]
        if len(tail) <= len(LETTERS) and _without_letters(tail) is not None:
            head = re.sub(
                r"\s*(?:options|choices)\s*:?\s*$", "", "\n".join(lines[:start]), flags=re.I
            )
            return (head.strip(), options(tail)) if head.strip() else (text.strip(), ())
    return text.strip(), ()


def answer_text(value: object) -> str:
    """The answer without its tags, dollar signs and boxes: `<answer> $B$ </answer>` is `B`."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"the answer is {value!r:.60}, not a text or a number")
    text = str(value)
    tagged = _ANSWER.search(text)
    text = (tagged[1] if tagged else text).strip()
    while (bare := _unwrapped(text)) is not None:
        text = bare
    if not text:
        raise ValueError("the answer is empty")
    return text


def _unwrapped(text: str) -> str | None:
    for wrapping in _WRAPPINGS:
        if match := wrapping.fullmatch(text):
            inside = next(group for group in match.groups() if group is not None)
            return inside.strip() if _balanced(inside) else None
    return None


def _balanced(text: str) -> bool:
    """Whether no brace of `text` closes one that was opened outside it, as in `a} + \\boxed{b`."""
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return True


def choice_gold(answer: str, texts: Sequence[str]) -> str:
    """The letter of the right option: given as `B`, `(b).`, `B. red`, or as the option's text."""
    bare = answer.strip(" ().:\t\n")
    if len(bare) == 1 and bare.casefold() in LETTERS:
        return bare.upper()
    lettered = _LETTERED.fullmatch(answer)
    if lettered and lettered[1].casefold() in LETTERS[: len(texts)]:
        index = LETTERS.index(lettered[1].casefold())
        if texts[index].casefold() == lettered[2].strip().casefold():
            return lettered[1]
    same = [k for k, text in enumerate(texts) if text.casefold() == answer.casefold()]
    if len(same) == 1:
        return LETTERS[same[0]].upper()
    raise ValueError(f"the answer {answer!r:.60} is neither a letter nor one of the options")


def numeric_gold(answer: str) -> str:
    if number(answer) is None:
        raise ValueError(f"the answer {answer!r:.60} is not one number")
    return answer


def gold(kind: Kind, answer: str, texts: Sequence[str]) -> str:
    """The gold answer of a kind, from the bare text of an answer."""
    if kind is Kind.CHOICE:
        return choice_gold(answer, texts)
    return numeric_gold(answer) if kind is Kind.NUMERIC else answer


def path_of(value: object) -> str:
    """A local path, from a path or a file:// address."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"a media path is {value!r:.60}, not a text")
    path = value.removeprefix("file://")
    if path.startswith(("http://", "https://", "data:")):
        raise ValueError(f"media {path[:60]!r} is not a local file; fetch it first")
    return path


def one_video(paths: Iterable[str]) -> str | None:
    """The video of a question that has at most one."""
    videos = list(paths)
    if len(videos) > 1:
        raise ValueError(f"it has {len(videos)} videos; one a question is supported")
    return videos[0] if videos else None


def without_placeholders(text: str) -> str:
    """The text without `<image>` and `<video>`, which mark where media stand: ours stand first."""
    return re.sub(r"\s*<(?:image|video)>[ \t]*\n?", " ", text).strip()


def listed(value: Any) -> list:
    """A value that may be missing, single or a list, as a list."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
