"""Whether a video file is all there, read from what its container says of its own length.

A file cut short often still opens. FFmpeg's decoders then repeat or invent the frames they
lack, and say so only in their log. MP4 and MOV (ISO/IEC 14496-12 boxes), Matroska and WebM
(RFC 8794 elements) and AVI (RIFF) state how long they are, so the cut is found before decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ISO_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}


def declared_size(path: Path) -> int | None:
    """The bytes that the file's own headers promise; None where its format does not say."""
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _ISO_FIRST_BOXES:
            return max(_iso_box_ends(file, path.stat().st_size))
        if head[:4] == _EBML:
            return _matroska_end(file)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return int.from_bytes(head[4:8], "little") + 8
    return None


def _iso_box_ends(file: BinaryIO, size: int) -> Iterator[int]:
    """Where each top-level box says that it ends."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        length = int.from_bytes(file.read(4), "big")
        file.read(4)  # the box's type
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        elif length == 0:  # to the end of the file, wherever that is
            length = size - start
        start += max(length, 8)
        yield start


def _matroska_end(file: BinaryIO) -> int | None:
    """The end of the first segment; None for a stream of unknown length."""
    file.read(4)
    header = _vint(file)
    if header is None:
        return None
    file.seek(header, 1)
    if file.read(4) != _SEGMENT or (length := _vint(file)) is None:
        return None
    return file.tell() + length


def _vint(file: BinaryIO) -> int | None:
    """An EBML variable-length size; all ones (or nothing left to read) means unknown."""
    first = file.read(1)
    if not first or first == b"\0":
        return None
    octets = 9 - first[0].bit_length()
    bits = 7 * octets
    value = int.from_bytes(first + file.read(octets - 1), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
