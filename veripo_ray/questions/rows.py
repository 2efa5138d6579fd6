"""The rows of a JSONL, JSON or parquet file, each with its place; the content tells which it is.

A file is read as its rows are asked for: one of gigabytes costs no more memory than its largest
row and a piece of PIECE bytes.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from veripo_ray.errors import DataError
from veripo_ray.questions.json_list import values

PARQUET_MARK = b"PAR1"
PIECE = 1 << 20  # bytes read at once
PARQUET_ROWS = 1024  # rows decoded at once
Row = tuple[str, Any]  # place, and a dict; or a str that says why there is none


def read_rows(path: Path) -> Iterator[Row]:
    """Each row of the file as (file:line or file[index], dict or the reason why it is not one).

    Raises DataError for a file that is missing, unreadable, empty or of no format known here:
    at the first row, or where the damage is.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(PARQUET_MARK)) == PARQUET_MARK:
                yield from _parquet(path)
                return
            file.seek(0)
            yield from _text(path, file)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})", fix="check data.train and data.heldout"
        ) from None


def _text(path: Path, file: BinaryIO) -> Iterator[Row]:
    pieces = _decoded(path, file)
    head = ""
    while not head.strip():
        piece = next(pieces, None)
        if piece is None:
            raise DataError(f"{path}: it has no questions in it", fix="check how it was made")
        head += piece
    rows = _array if head.lstrip().startswith("[") else _lines
    return rows(path, chain([head], pieces))


def _decoded(path: Path, file: BinaryIO) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    at = 0
    while piece := file.read(PIECE):
        yield _decode(path, decoder, piece, at)
        at += len(piece)
    yield _decode(path, decoder, b"", at)


def _decode(path: Path, decoder: codecs.IncrementalDecoder, piece: bytes, at: int) -> str:
    """The text of bytes [at, at + len(piece)) of the file, the last of it if they are none."""
    waiting = len(decoder.getstate()[0])  # the beginning of a character that the last piece cut
    try:
        return decoder.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: it is not UTF-8 text (byte {at - waiting + error.start})",
            fix="give JSONL, a JSON list, or parquet",
        ) from None


def _lines(path: Path, pieces: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(_split(pieces), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield f"{path}:{number}", f"it is not JSON ({error})"
        else:
            yield _row(f"{path}:{number}", row)


def _split(pieces: Iterator[str]) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from whole
    yield rest


def _array(path: Path, pieces: Iterator[str]) -> Iterator[Row]:
    try:
        for index, row in enumerate(values(pieces)):
            yield _row(f"{path}[{index}]", row)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: it begins as a JSON list but is not one ({error})",
            fix="fetch it again, or write one JSON object a line",
        ) from None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = file.iter_batches(PARQUET_ROWS)
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            for index, row in enumerate(rows):
                # A column has a value in every row; None says that a row has no such field.
                present = {key: value for key, value in row.items() if value is not None}
                yield f"{path}[{index}]", present
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: it is not a readable parquet file ({str(error).splitlines()[0]})",
            fix="fetch it again, or write it again with pyarrow",
        ) from None


def _row(place: str, row: Any) -> Row:
    return place, row if isinstance(row, dict) else f"it is not a JSON object but {row!r:.40}"
