"""What travels to and from the verifier's endpoint, as JSON or msgpack, bounded on arrival.

Request `{"items": [{question_id, question, kind, gold, options, response}, ...]}`; reply
`{"verdicts": [...]}`, one an item, in order. A body from a stranger is measured before it is built:
a megabyte of empty arrays would otherwise become a hundred in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import msgpack
from pydantic import ValidationError

from veripo_ray import codec
from veripo_ray.errors import DataError
from veripo_ray.records import Verdict
from veripo_ray.verifier.verify import Item

JSON, MSGPACK = "application/json", "application/msgpack"
_MAX_FIELDS, _MAX_OPTIONS = 16, 64
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # an unclosed one runs to the end


class TooLargeError(DataError):
    """A body, or an array in it, is over its limit."""


def read_items(body: bytes, media_type: str, max_items: int) -> list[Item | str]:
    """The items of a request; for one that is not valid, what is wrong with it.

    Raises DataError for a body that is no request at all, TooLargeError for one beyond `max_items`.
    """
    read = _rows_of_msgpack if media_type == MSGPACK else _rows_of_json
    try:
        rows = read(body, max_items)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise DataError(f"the body is not {media_type}: {_clean(error)}", fix=_SHAPE) from None
    return [_item(row) for row in rows]


def write_items(items: Iterable[Item]) -> bytes:
    return msgpack.packb({"items": [item.model_dump(mode="json") for item in items]})


def write_verdicts(verdicts: Sequence[Verdict], media_type: str) -> bytes:
    reply = {"verdicts": [verdict.model_dump(mode="json") for verdict in verdicts]}
    return msgpack.packb(reply) if media_type == MSGPACK else json.dumps(reply).encode()


def read_verdicts(body: bytes, expected: int) -> list[Verdict]:
    """The verdicts of a msgpack reply. Raises DataError unless there are as many as `expected`."""
    try:
        verdicts = [Verdict.model_validate(row) for row in codec.load_plain(body)["verdicts"]]
    except (TypeError, KeyError, ValidationError) as error:
        raise DataError(f"the reply holds no verdicts: {_clean(error)}") from None
    if len(verdicts) != expected:
        raise DataError(f"the reply holds {len(verdicts)} verdicts for {expected} items")
    return verdicts


_SHAPE = 'send {"items": [{"kind": ..., "gold": ..., "response": ...}, ...]}'


def _rows_of_json(body: bytes, max_items: int) -> list[Any]:
    skeleton = _STRING.sub(b"", body)
    values = skeleton.count(b",") + skeleton.count(b"[") + skeleton.count(b"{")
    if values > (max_items + 1) * (_MAX_FIELDS + _MAX_OPTIONS):
        raise TooLargeError(f"the body holds {values} values", fix="send fewer items in a request")
    message = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    rows = message.get("items") if isinstance(message, dict) else None
    if not isinstance(rows, list) or len(message) > 1:
        raise ValueError("expected one key, items, with an array")
    return _counted(rows, len(rows), max_items)


def _rows_of_msgpack(body: bytes, max_items: int) -> list[Any]:
    """Maps and arrays are read by their headers, so that nothing is built beyond the limits; the
    values in them may only be scalars."""
    size = max(1, len(body))
    unpacker = msgpack.Unpacker(
        raw=False,
        strict_map_key=True,
        max_buffer_size=size,
        max_str_len=size,
        max_bin_len=0,
        max_ext_len=0,
        max_array_len=0,
        max_map_len=0,
    )
    unpacker.feed(body)
    if unpacker.read_map_header() != 1 or unpacker.unpack() != "items":
        raise ValueError("expected one key, items, with an array")
    count = unpacker.read_array_header()
    _counted((), count, max_items)
    rows = [_row(unpacker) for _ in range(count)]
    if unpacker.tell() != len(body):
        raise ValueError("there is more behind the request")
    return rows


def _row(unpacker: msgpack.Unpacker) -> dict[Any, Any]:
    fields = unpacker.read_map_header()
    if fields > _MAX_FIELDS:
        raise TooLargeError(f"an item has {fields} fields, more than {_MAX_FIELDS}")
    row = {}
    for _ in range(fields):
        name = unpacker.unpack()
        row[name] = _texts(unpacker) if name == "options" else unpacker.unpack()
    return row


def _texts(unpacker: msgpack.Unpacker) -> list[Any]:
    count = unpacker.read_array_header()
    if count > _MAX_OPTIONS:
        raise TooLargeError(f"an item has {count} options, more than {_MAX_OPTIONS}")
    return [unpacker.unpack() for _ in range(count)]


def _counted(rows: Any, count: int, max_items: int) -> Any:
    if count > max_items:
        raise TooLargeError(
            f"the request holds {count} items, more than {max_items}",
            fix="send fewer in a request, or raise the verifier's max_items",
        )
    return rows


def _item(row: Any) -> Item | str:
    try:
        return Item.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "item"
        return f"the item is not valid: {_clean(where)}: {_clean(first['msg'])}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _clean(problem: object) -> str:
    """Short, and free of the lone surrogates that a stranger's text may hold."""
    text = (str(problem) or type(problem).__name__)[:200]
    return text.encode("utf-8", "backslashreplace").decode()
