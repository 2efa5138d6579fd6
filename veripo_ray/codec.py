"""Records as msgpack: versioned, bounded, and safe to read from strangers.

One message is a map `{"v": version, "t": record type, "d": [fields, ...]}`. Token ids and
log-probabilities are raw little-endian bytes. Extension types, integer keys, deep nesting and
anything beyond `Limits` are refused before they cost memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack
import numpy as np
from pydantic import ValidationError

from veripo_ray.errors import DataError
from veripo_ray.records import Record

VERSION = 1
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a message may hold. `items` bounds every array and map; empty arrays cost 50 times
    their wire size in memory, so the body's own bound matters most."""

    body_bytes: int = 256 << 20
    items: int = 1 << 17
    text_bytes: int = 16 << 20
    binary_bytes: int = 64 << 20


DEFAULT_LIMITS = Limits()


def load_plain(data: bytes | memoryview, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Plain msgpack under `limits`. Raises DataError for anything malformed or too large."""
    if len(data) > limits.body_bytes:
        raise DataError(
            f"a msgpack message of {len(data)} bytes is over the limit of {limits.body_bytes}",
            fix="send fewer records in one message",
        )
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=limits.text_bytes,
            max_bin_len=limits.binary_bytes,
            max_array_len=limits.items,
            max_map_len=limits.items,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"not a msgpack message we accept: {reason}") from error


def pack_many(records: Iterable[Record]) -> bytes:
    """One message of records of one type; an empty message has type ''."""
    rows = list(records)
    kinds = {type(row).__name__ for row in rows}
    if len(kinds) > 1:
        raise TypeError(f"one message holds one type of record, got {sorted(kinds)}")
    return _message(kinds.pop() if kinds else "", [row.model_dump() for row in rows])


def pack_plain(rows: Sequence[dict[str, Any]], kind: type[Record]) -> bytes:
    """One message of what `model_dump` gives of records of this type: checked by its reader, and
    before by who has it, see `plain`."""
    return _message(kind.__name__ if rows else "", rows)


def _message(name: str, rows: Sequence[dict[str, Any]]) -> bytes:
    return msgpack.packb({"v": VERSION, "t": name, "d": rows}, use_bin_type=True)


def unpack_many(
    data: bytes | memoryview, kind: type[R], limits: Limits = DEFAULT_LIMITS
) -> list[R]:
    """The records of one message. Raises DataError naming what does not fit."""
    message = load_plain(data, limits)
    rows = _checked_body(message, kind)
    try:
        return [kind.model_validate(row) for row in rows]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        problem = f"a {kind.__name__} record is malformed at {where}: {first['msg']}"
        raise DataError(problem) from None


def _checked_body(message: Any, kind: type[Record]) -> list[Any]:
    if not isinstance(message, dict) or set(message) != {"v", "t", "d"}:
        raise DataError("not a message of records: expected the keys v, t and d")
    if message["v"] != VERSION:
        raise DataError(
            f"records of version {message['v']!r} cannot be read by version {VERSION}",
            fix="read them with the release of veripo-ray that wrote them",
        )
    if message["t"] not in ("", kind.__name__) or not isinstance(message["d"], list):
        raise DataError(f"expected records of type {kind.__name__}, got {message['t']!r}")
    return message["d"]


def pack(record: Record) -> bytes:
    return pack_many([record])


def unpack(data: bytes | memoryview, kind: type[R], limits: Limits = DEFAULT_LIMITS) -> R:
    """The only record of a message."""
    rows = unpack_many(data, kind, limits)
    if len(rows) != 1:
        raise DataError(f"expected one {kind.__name__} record, got {len(rows)}")
    return rows[0]


def to_array(data: bytes) -> np.ndarray:
    """Bytes as a uint8 vector: Ray's object store shares arrays without a copy, bytes it copies."""
    return np.frombuffer(data, dtype=np.uint8)
