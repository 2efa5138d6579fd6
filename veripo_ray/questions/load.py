"""Load and write files of questions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from veripo_ray.errors import DataError, VeripoError
from veripo_ray.questions.formats import CONVERTERS, formats_of
from veripo_ray.questions.rows import PARQUET_MARK, Row, read_rows
from veripo_ray.records import Kind, Question
from veripo_ray.scoring.answers import LETTERS
from veripo_ray.scoring.rewards import check_gold

FORMATS = ("auto", *CONVERTERS, "parquet")
_LOOK_AT = 50  # rows from which a format is told
_MEDIA_TOKEN = re.compile(r"<\|(?:vision|image|video)_\w+\|>")


@dataclass(frozen=True, slots=True)
class BadItem:
    """A row that was left out: its place (file:line or file[index]), its id if known, and why."""

    where: str
    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {f'question {self.id}: ' if self.id else ''}{self.reason}"


def load_questions(
    path: str | Path,
    format: str = "auto",  # noqa: A002
    video_root: str | Path | None = None,
) -> tuple[list[Question], list[BadItem]]:
    """The usable questions of a file, in order, and the rows that are not, each with its reason:
    what `iter_questions` gives, all at once."""
    good: list[Question] = []
    bad: list[BadItem] = []
    for item in iter_questions(path, format, video_root):
        good.append(item) if isinstance(item, Question) else bad.append(item)
    return good, bad


def iter_questions(
    path: str | Path,
    format: str = "auto",  # noqa: A002
    video_root: str | Path | None = None,
) -> Iterator[Question | BadItem]:
    """A file row by row, in order: each a checked question, or why it cannot be used. Of what was
    given, only the ids are kept.

    format: one of FORMATS; "auto" tells it from the fields of the first rows, and "parquet" is a
    parquet file with the columns of our own. Relative media paths start at `video_root`, without
    one at the file's folder, and are returned absolute. Raises DataError for a file that cannot
    be read, or whose format cannot be told.
    """
    path = Path(path)
    rows = read_rows(path)
    first = _first(rows, _LOOK_AT)
    convert = CONVERTERS[_format_of(path, first, format)]
    root = (Path(video_root) if video_root is not None else path.parent).absolute()
    seen: dict[str, int] = {}
    for number, (place, row) in enumerate(chain(first, rows)):
        if isinstance(row, str):
            yield BadItem(place, "", row)
            continue
        try:
            question = _at(root, convert(row, f"{path.stem}:{number}"))
            _check(question)
            question = _unique(question, seen, rename=convert is not CONVERTERS["veripo"])
        except (ValueError, DataError) as error:
            yield BadItem(place, _id_of(row), _reason(error))
        else:
            yield question


def write_questions(path: str | Path, questions: Iterable[Question]) -> None:
    """Write our JSONL, one question a line, whole or not at all."""
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(f"{q.model_dump_json(exclude_defaults=True)}\n" for q in questions)
    part.replace(path)


def _first(rows: Iterator[Row], count: int) -> list[Row]:
    """Rows from the beginning, until `count` of them are objects."""
    first: list[Row] = []
    while count and (row := next(rows, None)) is not None:
        first.append(row)
        count -= isinstance(row[1], dict)
    return first


def _format_of(path: Path, rows: Sequence[Row], wanted: str) -> str:
    if wanted not in FORMATS:
        raise DataError(
            f"data.format is {wanted!r}, which is not known", fix=f"use one of {', '.join(FORMATS)}"
        )
    if wanted == "parquet":
        with path.open("rb") as file:
            if file.read(4) != PARQUET_MARK:
                raise DataError(f"{path}: it is not parquet", fix="set data.format to auto")
        return "veripo"
    if wanted != "auto":
        return wanted
    seen = [row for _, row in rows if isinstance(row, dict)]
    found = set().union(*map(formats_of, seen))
    if len(found) == 1:
        return found.pop()
    fields = ", ".join(seen[0]) if seen else "none"
    what = f"could be of {' or '.join(sorted(found))}" if found else "are of no format known here"
    raise DataError(
        f"{path}: its rows {what} (fields of the first: {fields})",
        fix=f"set data.format to one of {', '.join(CONVERTERS)}, or rename the fields",
    )


def _at(root: Path, question: Question) -> Question:
    """The question with absolute media paths. ValueError names a file that is not there."""
    if not question.video and not question.images:
        return question
    video = str(root / question.video) if question.video else None
    images = tuple(str(root / image) for image in question.images)
    for file in filter(None, (video, *images)):
        if not os.path.isfile(file):
            raise ValueError(f"no such file: {file}")
    return question.model_copy(update={"video": video, "images": images})


def _check(question: Question) -> None:
    """What the types do not say. Raises ValueError or DataError."""
    if len(question.options) > len(LETTERS):
        raise ValueError(
            f"it has {len(question.options)} options; at most {len(LETTERS)} have letters"
        )
    if question.kind is Kind.CHOICE and len(question.options) == 1:
        raise ValueError("it has a single option")
    if question.kind is not Kind.CHOICE and question.options:
        raise ValueError(f"it has options, but its kind is {question.kind}")
    if token := _MEDIA_TOKEN.search(" ".join((question.text, *question.options))):
        raise ValueError(f"its text has the media token {token[0]}, which the prompt itself adds")
    check_gold(question.kind, question.gold, name=question.id, options=len(question.options))


def _unique(question: Question, seen: dict[str, int], *, rename: bool) -> Question:
    """The question under an id of its own. Others use theirs for a clip (62 of TOMATO's in
    VerIPO's files have several questions), so a second question under one id becomes id#2; a copy
    is bad. seen: a digest of each question by its id."""
    plain, count = question.id, 1
    while question.id in seen:
        if not rename or hash(question) == seen[question.id]:
            raise ValueError("its id was seen before")
        count += 1
        question = question.model_copy(update={"id": f"{plain}#{count}"})
    seen[question.id] = hash(question)
    return question


def _id_of(row: Mapping[str, Any]) -> str:
    found = (row.get(key) for key in ("id", "problem_id", "question_id"))
    return str(next((value for value in found if value is not None), ""))[:80]


def _reason(error: Exception) -> str:
    match error:
        case ValidationError():
            first = error.errors()[0]
            return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        case VeripoError():
            return error.problem
    return str(error)
