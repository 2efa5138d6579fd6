"""The rows of a JSONL, JSON or parquet file, each with its place; the content tells which it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from veripo_ray.errors import DataError

PARQUET_MARK = b"PAR1"
Row = tuple[str, Any]  # place, and a dict; or a str that says why there is none


def read_rows(path: Path) -> Iterator[Row]:
    """Each row of the file as (file:line or file[index], dict or the reason why it is not one).

    Raises DataError for a file that is missing, unreadable, empty or of no format known here.
    """
    content = _content(path)
    if content.startswith(PARQUET_MARK):
        return _parquet(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: it is not UTF-8 text (byte {error.start})",
            fix="give JSONL, a JSON list, or parquet",
        ) from None
    if not text.strip():
        raise DataError(f"{path}: it has no questions in it", fix="check how it was made")
    return _array(path, text) if text.lstrip().startswith("[") else _lines(path, text)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})", fix="check data.train and data.heldout"
        ) from None


def _lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield f"{path}:{number}", f"it is not JSON ({error})"
        else:
            yield _row(f"{path}:{number}", row)


def _array(path: Path, text: str) -> Iterator[Row]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: it begins as a JSON list but is not one ({error})",
            fix="fetch it again, or write one JSON object a line",
        ) from None
    return (_row(f"{path}[{index}]", row) for index, row in enumerate(rows))


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: it is not a readable parquet file ({str(error).splitlines()[0]})",
            fix="fetch it again, or write it again with pyarrow",
        ) from None
    # A column has a value in every row; None is how parquet says that a row has no such field.
    present = ({key: value for key, value in row.items() if value is not None} for row in rows)
    return ((f"{path}[{index}]", row) for index, row in enumerate(present))


def _row(place: str, row: Any) -> Row:
    return place, row if isinstance(row, dict) else f"it is not a JSON object but {row!r:.40}"
