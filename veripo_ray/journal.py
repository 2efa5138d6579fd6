"""Append-only journals of a run: groups, verdicts and pairs, one msgpack message after another.

A message is preceded by its length (4 bytes, little endian). A checkpoint records each journal's
size; resuming truncates to it, so that what is done again is not written twice. A torn last
message (power cut) is dropped on opening.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

from veripo_ray import codec
from veripo_ray.attempt import Writing
from veripo_ray.errors import DataError
from veripo_ray.records import Group, JudgedGroup, Pair, Record

R = TypeVar("R", bound=Record)
_LENGTH = struct.Struct("<I")


class Journal:
    """One file of records of one type. `writing`: what has to be held while it changes."""

    def __init__(self, path: Path, kind: type[Record], writing: Writing = nullcontext) -> None:
        self.path, self.kind, self._writing = path, kind, writing
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.truncate(sum(_LENGTH.size + length for length in _whole_messages(path)))

    def append(self, records: Iterable[Record]) -> None:
        """Write one message, whole, and hand it to the operating system."""
        if rows := list(records):
            self._append(codec.pack_many(rows))

    def append_plain(self, rows: Sequence[dict[str, Any]]) -> None:
        """As `append`, of records as their `model_dump` gives them: see `veripo_ray.plain`."""
        if rows:
            self._append(codec.pack_plain(rows, self.kind))

    def _append(self, body: bytes) -> None:
        with self._writing(), self.path.open("ab") as file:
            file.write(_LENGTH.pack(len(body)) + body)

    def size(self) -> int:
        """Bytes written so far: what a checkpoint records."""
        return self.path.stat().st_size

    def truncate(self, size: int) -> None:
        """Forget everything written after `size`."""
        if size > self.size():
            raise DataError(
                f"{self.path} has {self.size()} bytes, fewer than the {size} "
                "its checkpoint recorded",
                fix="restore the journal folder, or start a new run in another --output",
            )
        with self._writing():
            os.truncate(self.path, size)


def _whole_messages(path: Path, start: int = 0) -> Iterator[int]:
    """Lengths of the complete messages in the file from byte `start` on."""
    at = start
    with path.open("rb") as file:
        file.seek(at)
        while len(header := file.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(header)
            at += _LENGTH.size + length
            if at > path.stat().st_size:
                return
            file.seek(at)
            yield length


def read(path: Path, kind: type[R], start: int = 0) -> Iterator[R]:
    """Every record from byte `start` on, in the order written; none where there is no file."""
    tail = Tail(path, kind, start)
    while records := tail.take():
        yield from records


class Tail(Generic[R]):
    """A reader that follows a journal while it grows. `at`: the byte it reads from next."""

    def __init__(self, path: Path, kind: type[R], start: int = 0) -> None:
        self._path, self._kind, self.at = path, kind, start

    def take(self) -> list[R]:
        """The records of the next message; empty when there is none yet."""
        length = next(_whole_messages(self._path, self.at), None) if self._path.exists() else None
        if length is None:
            return []
        with self._path.open("rb") as file:
            file.seek(self.at + _LENGTH.size)
            body = file.read(length)
        self.at += _LENGTH.size + length
        return codec.unpack_many(body, self._kind)


def read_groups(run_folder: Path) -> Iterator[Group]:
    return read(run_folder / "journal" / "groups.msgpack", Group)


def read_judged(run_folder: Path) -> Iterator[JudgedGroup]:
    return read(run_folder / "journal" / "verdicts.msgpack", JudgedGroup)


def read_pairs(run_folder: Path) -> Iterator[Pair]:
    return read(run_folder / "journal" / "pairs.msgpack", Pair)


class RunJournals:
    """The three journals of a run folder, which change only while `writing` is held."""

    def __init__(self, run_folder: Path, writing: Writing = nullcontext) -> None:
        folder = run_folder / "journal"
        self.groups = Journal(folder / "groups.msgpack", Group, writing)
        self.verdicts = Journal(folder / "verdicts.msgpack", JudgedGroup, writing)
        self.pairs = Journal(folder / "pairs.msgpack", Pair, writing)

    def sizes(self) -> dict[str, int]:
        return {name: getattr(self, name).size() for name in ("groups", "verdicts", "pairs")}

    def truncate(self, sizes: dict[str, int]) -> None:
        for name, size in sizes.items():
            getattr(self, name).truncate(size)
