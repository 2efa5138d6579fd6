"""Messages of strangers, as JSON or msgpack: measured before they are built.

A megabyte of empty arrays would otherwise become a hundred in memory. Refused besides: numbers that
are not finite, and msgpack's binary and extension types.
"""

from __future__ import annotations

import json
import math
import re
import struct
from typing import Any, NoReturn

import msgpack
from pydantic import ValidationError

from veripo_ray.errors import DataError
from veripo_ray.records import Record

JSON, MSGPACK = "application/json", "application/msgpack"
NDJSON = "application/x-ndjson"
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # an unclosed one runs to the end


class TooLargeError(DataError):
    """A body, or an array in it, is over its limit."""


def parse(body: bytes, media_type: str, max_values: int) -> Any:
    """The plain value that `body` is.

    Raises TooLargeError when it holds more than `max_values` values, DataError when it is not
    `media_type` at all.
    """
    try:
        if media_type == MSGPACK:
            _measure_msgpack(body, max_values)
            return msgpack.unpackb(body, raw=False, strict_map_key=True)
        _measure_json(body, max_values)
        return json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite
        )
    except (ValueError, RecursionError, IndexError, msgpack.UnpackException) as error:
        raise DataError(
            f"the body is not {media_type}: {clean(error)}",
            fix="send one whole message, with numbers that are finite and texts that are UTF-8",
        ) from None


def write(message: Record, media_type: str) -> bytes:
    if media_type == MSGPACK:
        return msgpack.packb(message.model_dump(mode="json"))
    return message.model_dump_json().encode()


def first_problem(error: ValidationError) -> str:
    """Where the first mistake is, and what is wrong there."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    problem = first["msg"].removeprefix("Value error, ")
    return clean(f"{where}: {problem}" if where else problem)


def clean(problem: object) -> str:
    """Short, and free of the lone surrogates that a stranger's text may hold."""
    text = (str(problem) or type(problem).__name__)[:200]
    return text.encode("utf-8", "backslashreplace").decode()


def _measure_json(body: bytes, limit: int) -> None:
    """The marks inside of texts are left out only where there are too many with them."""
    if _marks(body) > limit:
        _counted(_marks(_STRING.sub(b"", body)), limit)


def _marks(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _measure_msgpack(body: bytes, limit: int) -> None:
    """Walk over the headers. Raises IndexError where the message ends too early."""
    at, left, seen = 0, 1, 1
    while left:
        tag = body[at]
        size = _SIZES[tag]
        left -= 1
        if size is None:
            size, inner = _header(body, at, tag)
            left += inner
            seen += inner
            _counted(seen, limit)
        at += size
    if at != len(body):
        raise ValueError("it ends early" if at > len(body) else "there is more behind the message")


def _counted(values: int, limit: int) -> None:
    if values > limit:
        raise TooLargeError(
            f"the body holds {values} values, more than {limit}", fix="send less in a request"
        )


def _sizes() -> list[int | None]:
    """Of each first byte, how many bytes its value takes; None where `_header` has to look."""
    sizes: list[int | None] = [None] * 256
    sizes[0x00:0x80] = [1] * 0x80  # positive fixint
    sizes[0xE0:] = [1] * 0x20  # negative fixint
    sizes[0xA0:0xC0] = [1 + length for length in range(0x20)]  # fixstr
    sizes[0xC0], sizes[0xC2], sizes[0xC3] = 1, 1, 1  # nil, false, true
    for bits in range(4):
        sizes[0xCC + bits] = sizes[0xD0 + bits] = 1 + 2**bits  # uint and int of 8 to 64 bits
    return sizes


_SIZES = _sizes()
_LENGTHS = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}  # bytes of the length
_FLOATS = {0xCA: ">f", 0xCB: ">d"}


def _header(body: bytes, at: int, tag: int) -> tuple[int, int]:
    """Bytes to go on by, and how many values follow that belong to this one."""
    if 0x80 <= tag < 0x90:  # fixmap
        return 1, 2 * (tag & 0x0F)
    if 0x90 <= tag < 0xA0:  # fixarray
        return 1, tag & 0x0F
    if tag in _FLOATS:
        return _float(body, at, _FLOATS[tag])
    if tag not in _LENGTHS:
        raise ValueError(f"type 0x{tag:02x} is binary, an extension or none at all")
    width = _LENGTHS[tag]
    length = int.from_bytes(body[at + 1 : at + 1 + width], "big")
    if tag <= 0xDB:  # str
        return 1 + width + length, 0
    return 1 + width, length if tag <= 0xDD else 2 * length


def _float(body: bytes, at: int, form: str) -> tuple[int, int]:
    size = struct.calcsize(form)
    digits = body[at + 1 : at + 1 + size]
    if len(digits) == size and not math.isfinite(struct.unpack(form, digits)[0]):
        raise ValueError("it holds a number that is not finite")
    return 1 + size, 0


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is beyond a float")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
