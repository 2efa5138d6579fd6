"""How a question is put to the policy: the text of the user's turn, its media aside.

A template is a text file with the placeholders {question} and {options} (one a line, "A. red") or
{options_inline} ("A red B green"). Where a file NAME_numeric.txt lies beside NAME.txt, questions
for a number use it. `veripo` asks for what VerIPO's prompts ask for: thinking first, then an answer
in LaTeX inside the tags, after a one-line example.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from veripo_ray.errors import ConfigError
from veripo_ray.records import Kind, Question

_PLACEHOLDER = re.compile(r"\{(question|options|options_inline)\}")


def render(question: Question, template: str) -> str:
    """The user's text for a question. template: a name from `names` or the path of a text file.

    Raises ConfigError for a template that does not exist or leaves out question or options.
    """
    text = _read(template, question.kind is Kind.NUMERIC)
    values = {
        "question": question.text,
        "options": "\n".join(f"{letter}. {text}" for letter, text in _lettered(question)),
        "options_inline": " ".join(f"{letter} {text}" for letter, text in _lettered(question)),
    }
    if question.options and "{options" not in text:
        raise ConfigError(
            f"prompt.template {template!r} does not show the options of question {question.id}",
            fix="put {options} or {options_inline} into it",
        )
    lines = (_filled(line, values) for line in text.splitlines())
    return "\n".join(line for line in lines if line is not None).strip()


def names() -> list[str]:
    """The templates that come with the package."""
    found = (item.name for item in files(__name__).iterdir() if item.name.endswith(".txt"))
    return sorted(name.removesuffix(".txt") for name in found if "_numeric" not in name)


def _lettered(question: Question) -> list[tuple[str, str]]:
    return [(chr(ord("A") + index), text) for index, text in enumerate(question.options)]


def _filled(line: str, values: dict[str, str]) -> str | None:
    """The line with its values; None for one that held nothing but options that are not there."""
    filled = _PLACEHOLDER.sub(lambda match: values[match[1]], line).rstrip()
    return filled if filled or not line.strip() else None


@cache
def _read(template: str, numeric: bool) -> str:
    file = _find(template)
    if numeric:
        special = _sibling(file, "_numeric")
        file = special if special.is_file() else file
    text = file.read_text(encoding="utf-8")
    if "{question}" not in text:
        raise ConfigError(
            f"prompt.template {template!r} has no {{question}} in it",
            fix="put {question} where the question belongs",
        )
    return text


def _find(template: str) -> Traversable | Path:
    packaged = files(__name__) / f"{template}.txt"
    if template in names():
        return packaged
    if Path(template).is_file():
        return Path(template)
    raise ConfigError(
        f"prompt.template {template!r} is neither a file nor a template of this package",
        fix=f"use one of {', '.join(names())}, or the path of a text file",
    )


def _sibling(file: Traversable | Path, ending: str) -> Traversable | Path:
    name = Path(file.name)
    other = f"{name.stem}{ending}{name.suffix}"
    return file.with_name(other) if isinstance(file, Path) else files(__name__) / other
