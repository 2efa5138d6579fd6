"""How a judge that is a language model is asked whether an answer follows from the thinking.

A template is a text file with the placeholders {question}, {options} (one a line, "A. red"),
{thinking} and {answer}. Whatever is put into it is quoted: each line begins with "> ", and what
looks like a chat template's own mark (`<|`) is taken apart. So no text of a response can pose as
the end of the quotation or as another turn.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from veripo_ray.errors import ConfigError

_PLACEHOLDER = re.compile(r"\{(question|options|thinking|answer)\}")
_NEEDED = ("{thinking}", "{answer}")


def render(
    template: str, *, question: str, options: tuple[str, ...], thinking: str, answer: str
) -> str:
    """The text of the user's turn. template: a name from `names` or the path of a text file.

    Raises ConfigError for a template that does not exist or leaves out thinking or answer.
    """
    lettered = (f"{chr(ord('A') + index)}. {text}" for index, text in enumerate(options))
    values = {
        "question": quoted(question),
        "options": quoted("\n".join(lettered)),
        "thinking": quoted(thinking),
        "answer": quoted(answer),
    }
    lines = (_filled(line, values) for line in read(template).splitlines())
    return "\n".join(line for line in lines if line is not None).strip()


def names() -> list[str]:
    """The templates that come with the package."""
    found = (item.name for item in files(__name__).iterdir() if item.name.endswith(".txt"))
    return sorted(name.removesuffix(".txt") for name in found)


def quoted(text: str) -> str:
    """The text, nothing cut, each line behind "> "."""
    apart = text.replace("<|", "< |")
    return "\n".join(f"> {line}" for line in apart.splitlines())


@cache
def read(template: str) -> str:
    """The template's text. Raises ConfigError as `render` does."""
    text = _find(template).read_text(encoding="utf-8")
    missing = [name for name in _NEEDED if name not in text]
    if missing:
        raise ConfigError(
            f"the judge's prompt {template!r} has no {' and no '.join(missing)} in it",
            fix="put {thinking} and {answer} where they belong",
        )
    return text


def _find(template: str) -> Traversable | Path:
    if template in names():
        return files(__name__) / f"{template}.txt"
    if Path(template).is_file():
        return Path(template)
    raise ConfigError(
        f"the judge's prompt {template!r} is neither a file nor a prompt of this package",
        fix=f"use one of {', '.join(names())}, or the path of a text file",
    )


def _filled(line: str, values: dict[str, str]) -> str | None:
    """The line with its values; None for one that held nothing but a value that is empty."""
    filled = _PLACEHOLDER.sub(lambda match: values[match[1]], line)
    return filled if filled or not line else None
