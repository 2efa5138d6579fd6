"""Append-only journals of a run: groups, verdicts and pairs, one msgpack message after another.

A message is preceded by its length (4 bytes, little endian). A checkpoint records each journal's
size; resuming truncates to it, so that what is done again is not written twice. A torn last
message (power cut) is dropped on opening.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from veripo_ray import codec
from veripo_ray.errors import DataError
from veripo_ray.records import Group, JudgedGroup, Pair, Record

R = TypeVar("R", bound=Record)
_LENGTH = struct.Struct("<I")


class Journal:
    """One file of records of one type."""

    def __init__(self, path: Path, kind: type[Record]) -> None:
        self.path, self.kind = path, kind
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.truncate(sum(_LENGTH.size + length for length in _whole_messages(path)))

    def append(self, records: Iterable[Record]) -> None:
        """Write one message, whole, and hand it to the operating system."""
        body = codec.pack_many(records)
        with self.path.open("ab") as file:
            file.write(_LENGTH.pack(len(body)) + body)

    def size(self) -> int:
        """Bytes written so far: what a checkpoint records."""
        return self.path.stat().st_size

    def truncate(self, size: int) -> None:
        """Forget everything written after `size`."""
        if size > self.size():
            raise DataError(
                f"{self.path} has {self.size()} bytes, fewer than the {size} its checkpoint recorded",
                fix="restore the journal folder, or start a new run in another --output",
            )
        os.truncate(self.path, size)


def _whole_messages(path: Path) -> Iterator[int]:
    """Lengths of the complete messages in the file."""
    left = path.stat().st_size
    with path.open("rb") as file:
        while left >= _LENGTH.size:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            left -= _LENGTH.size + length
            if left < 0:
                return
            file.seek(length, os.SEEK_CUR)
            yield length


def read(path: Path, kind: type[R]) -> Iterator[R]:
    """Every record of a journal, in the order written. A file that is not there has none."""
    if not path.exists():
        return
    lengths = list(_whole_messages(path))
    with path.open("rb") as file:
        for length in lengths:
            file.seek(_LENGTH.size, os.SEEK_CUR)
            yield from codec.unpack_many(file.read(length), kind)


def read_groups(run_folder: Path) -> Iterator[Group]:
    return read(run_folder / "journal" / "groups.msgpack", Group)


def read_judged(run_folder: Path) -> Iterator[JudgedGroup]:
    return read(run_folder / "journal" / "verdicts.msgpack", JudgedGroup)


def read_pairs(run_folder: Path) -> Iterator[Pair]:
    return read(run_folder / "journal" / "pairs.msgpack", Pair)


class RunJournals:
    """The three journals of a run folder."""

    def __init__(self, run_folder: Path) -> None:
        folder = run_folder / "journal"
        self.groups = Journal(folder / "groups.msgpack", Group)
        self.verdicts = Journal(folder / "verdicts.msgpack", JudgedGroup)
        self.pairs = Journal(folder / "pairs.msgpack", Pair)

    def sizes(self) -> dict[str, int]:
        return {name: getattr(self, name).size() for name in ("groups", "verdicts", "pairs")}

    def truncate(self, sizes: dict[str, int]) -> None:
        for name, size in sizes.items():
            getattr(self, name).truncate(size)
