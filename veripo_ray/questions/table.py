"""The questions of a run in a file: one is read when it is asked for, none is kept in memory.

`<name>.msgpack` holds the records one after another, `<name>.npz` where each ends and which row has
which id: 20 bytes a question are all that a process holds, whatever the questions are.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from veripo_ray import codec
from veripo_ray.errors import DataError
from veripo_ray.records import Question

READ_AT_ONCE = 256


class QuestionTable:
    """Questions by row, 0 to N - 1, in the order of their file, and rows by id. It travels as its
    path: who gets it opens the same files."""

    def __init__(self, path: Path) -> None:
        """Open what `write` has made at `path`. Raises DataError when it is not there, or torn."""
        self.path = path
        try:
            with np.load(_index(path), allow_pickle=False) as index:
                self._starts_N = index["starts"]  # N + 1 of them: the last is the end
                self._keys_N, self._rows_N = index["keys"], index["rows"]
            size = _records(path).stat().st_size
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise _broken(path, str(error)) from error
        if size != self._starts_N[-1]:
            raise _broken(path, f"{_records(path)} has {size} bytes, not {self._starts_N[-1]}")

    @classmethod
    def write(cls, path: Path, questions: Iterable[Question]) -> QuestionTable:
        """Write the questions, whose ids are unique, as they come. The index comes last, so that
        there is a whole table or none."""
        _index(path).unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        starts, keys = array("q", [0]), array("Q")
        with _records(path).open("wb") as file:
            for question in questions:
                starts.append(starts[-1] + file.write(codec.pack(question)))
                keys.append(_key(question.id))
        keys_N = np.asarray(keys, np.uint64)
        rows_N = np.argsort(keys_N, kind="stable").astype(np.int32)
        np.savez(
            _index(path), starts=np.asarray(starts, np.int64), keys=keys_N[rows_N], rows=rows_N
        )
        return cls(path)

    def __len__(self) -> int:
        return len(self._rows_N)

    def __getitem__(self, row: int) -> Question:
        return self.take([row])[0]

    def __iter__(self) -> Iterator[Question]:
        rows = iter(range(len(self)))
        while few := list(islice(rows, READ_AT_ONCE)):
            yield from self.take(few)

    def __reduce__(self) -> tuple[type[QuestionTable], tuple[Path]]:
        return QuestionTable, (self.path,)

    def take(self, rows: Sequence[int] | np.ndarray) -> list[Question]:
        """The questions of these rows, in this order. IndexError for a row that is not there."""
        with _records(self.path).open("rb") as file:
            return [self._read(file.fileno(), int(row)) for row in rows]

    def row_of(self, id_: str) -> int:
        """The row of the question with this id. Raises KeyError when there is none."""
        key = np.uint64(_key(id_))
        first, last = (
            np.searchsorted(self._keys_N, key),
            np.searchsorted(self._keys_N, key, "right"),
        )
        rows = self._rows_N[first:last]
        if len(rows) == 1:
            return int(rows[0])
        for row in rows:
            if self[row].id == id_:
                return int(row)
        raise KeyError(id_)

    def _read(self, file: int, row: int) -> Question:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} questions")
        start, end = int(self._starts_N[row]), int(self._starts_N[row + 1])
        return codec.unpack(os.pread(file, end - start, start), Question)


def _records(path: Path) -> Path:
    return path.with_name(f"{path.name}.msgpack")


def _index(path: Path) -> Path:
    return path.with_name(f"{path.name}.npz")


def _key(id_: str) -> int:
    """64 bits of the id: that an id which is not in a table of a million has the key of one that is
    happens once in 10^13 times. That two of the table share theirs is looked at nevertheless."""
    return int.from_bytes(blake2b(id_.encode(), digest_size=8).digest(), "little")


def _broken(path: Path, why: str) -> DataError:
    return DataError(
        f"the questions of the run cannot be read from {path}: {why}",
        fix="restore this folder from a copy, or start a new run in another --output",
    )
