"""Labelled cases by name, or from a JSONL file, with errors that name the line and what to mend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from veripo_ray.errors import DataError
from veripo_ray.verifier.labelled import tinyworld
from veripo_ray.verifier.labelled.record import Labelled

NAMES = ("video_qa", "tinyworld")
_SHIPPED = Path(__file__).parent
_SHOWN = 5  # bad lines in one error


def load(name: str | Path) -> tuple[Labelled, ...]:
    """The cases of a name in NAMES, or of the JSONL file at a path.

    Raises DataError that names the file, its bad lines, and the fix.
    """
    if name == "tinyworld":
        return tinyworld.cases()
    path = _SHIPPED / f"{name}.jsonl" if name in NAMES else Path(name)
    if not path.is_file():
        raise DataError(
            f"there are no labelled cases {str(name)!r}",
            fix=f"give one of {', '.join(NAMES)}, or the path of a JSONL file",
        )
    return _read(path)


def _read(path: Path) -> tuple[Labelled, ...]:
    cases: dict[str, Labelled] = {}
    problems: list[str] = []
    for number, line in _lines(path):
        try:
            case = Labelled.model_validate_json(line)
        except ValidationError as error:
            problems.append(f"line {number}: {_told(error)}")
            continue
        if case.id in cases:
            problems.append(f"line {number}: the id {case.id!r} is there already")
        cases[case.id] = case
    if problems or not cases:
        shown = problems[:_SHOWN] or ["it holds no case"]
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(
            "\n  ".join([f"{path} cannot be used:", *shown]) + more,
            fix=f"a line is a JSON object with {', '.join(Labelled.model_fields)}",
        )
    return tuple(cases.values())


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, counted from one."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line


def _told(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    problem = first["msg"].removeprefix("Value error, ")
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), problem]))
