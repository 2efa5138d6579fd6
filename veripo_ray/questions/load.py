"""Load and write files of questions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
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
    """The usable questions of a file, in order, and the rows that are not, each with its reason.

    format: one of FORMATS; "auto" tells it from the fields of the first rows, and "parquet" is a
    parquet file with the columns of our own. Relative media paths start at `video_root`, without
    one at the file's folder, and are returned absolute. Raises DataError for a file that cannot
    be read, or whose format cannot be told.
    """
    path = Path(path)
    rows = list(read_rows(path))
    convert = CONVERTERS[_format_of(path, rows, format)]
    root = Path(video_root) if video_root is not None else path.parent
    good: dict[str, Question] = {}
    bad: list[BadItem] = []
    for place, row in rows:
        if isinstance(row, str):
            bad.append(BadItem(place, "", row))
            continue
        try:
            question = _at(root.absolute(), convert(row, f"{path.stem}:{len(good) + len(bad)}"))
            _check(question)
            _add(question, good, rename=convert is not CONVERTERS["veripo"])
        except (ValueError, DataError) as error:
            bad.append(BadItem(place, _id_of(row), _reason(error)))
    return list(good.values()), bad


def write_questions(path: str | Path, questions: Iterable[Question]) -> None:
    """Write our JSONL, one question a line, whole or not at all."""
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(f"{q.model_dump_json(exclude_defaults=True)}\n" for q in questions)
    part.replace(path)


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
    seen = list(islice((row for _, row in rows if isinstance(row, dict)), _LOOK_AT))
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


def _add(question: Question, good: dict[str, Question], *, rename: bool) -> None:
    """Ids must be unique. Others use theirs for a clip (62 of TOMATO's in VerIPO's files have
    several questions), so a second question under one id becomes id#2; a copy is bad."""
    plain, count = question.id, 1
    while question.id in good:
        if not rename or question == good[question.id]:
            raise ValueError("its id was seen before")
        count += 1
        question = question.model_copy(update={"id": f"{plain}#{count}"})
    good[question.id] = question


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
