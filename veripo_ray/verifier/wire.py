"""What travels to and from `/v1/verify`, as JSON or msgpack (see `bodies`), bounded on arrival.

Request `{"items": [{question_id, question, kind, gold, options, response}, ...]}`; reply
`{"verdicts": [...]}`, one an item, in order. Each item stands for itself: one that is not valid
costs no other its verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from veripo_ray import codec, plain
from veripo_ray.errors import DataError
from veripo_ray.records import Verdict
from veripo_ray.verifier import bodies
from veripo_ray.verifier.bodies import JSON, MSGPACK, TooLargeError
from veripo_ray.verifier.shapes import VerifyReply, VerifyRequest
from veripo_ray.verifier.verify import Item

__all__ = [
    "JSON",
    "MSGPACK",
    "PlainVerdict",
    "TooLargeError",
    "first_error",
    "read_items",
    "read_plain_verdicts",
    "read_verdicts",
    "write_items",
    "write_verdicts",
]

PlainVerdict = dict[str, Any]  # a verdict as it travels: what its `model_dump` gives
_PLAIN = plain.checker(VerifyReply)
VALUES_PER_ITEM = 80  # its fields and, at most, its options
_SHAPE = 'send {"items": [{"kind": ..., "gold": ..., "response": ...}, ...]}'


def read_items(body: bytes, media_type: str, max_items: int) -> list[Item | str]:
    """The items of a request; for one that is not valid, what is wrong with it.

    Raises DataError for a body that is no request at all, TooLargeError for one beyond `max_items`.
    """
    message = bodies.parse(body, media_type, (max_items + 1) * VALUES_PER_ITEM)
    rows = message.get("items") if isinstance(message, dict) else None
    if not isinstance(rows, list) or len(message) > 1:
        raise DataError("the request is not one key, items, with an array", fix=_SHAPE)
    check_count(len(rows), max_items)
    return [_item(row) for row in rows]


def check_count(count: int, max_items: int) -> None:
    if count > max_items:
        raise TooLargeError(
            f"the request holds {count} items, more than {max_items}",
            fix="send fewer in a request, or raise the verifier's max_items",
        )


def write_items(items: Iterable[Item]) -> bytes:
    return bodies.write(VerifyRequest.model_construct(items=tuple(items)), MSGPACK)


def write_verdicts(verdicts: Sequence[Verdict], media_type: str) -> bytes:
    return bodies.write(VerifyReply.model_construct(verdicts=tuple(verdicts)), media_type)


def read_verdicts(body: bytes, expected: int) -> list[Verdict]:
    """The verdicts of a msgpack reply. Raises DataError unless there are as many as `expected`."""
    try:
        verdicts = list(VerifyReply.model_validate(codec.load_plain(body)).verdicts)
    except ValidationError as error:
        raise _no_verdicts(bodies.first_problem(error)) from None
    _check_answered(verdicts, expected)
    return verdicts


def read_plain_verdicts(body: bytes, expected: int) -> list[PlainVerdict]:
    """As `read_verdicts` and with its errors, in half of its time, for who passes them on."""
    try:
        verdicts = list(_PLAIN.validate_python(codec.load_plain(body))["verdicts"])
    except ValidationError as error:
        raise _no_verdicts(bodies.first_problem(error)) from None
    _check_answered(verdicts, expected)
    return verdicts


def first_error(verdict: PlainVerdict) -> str | None:
    """`Verdict.error` of a plain one."""
    found = (f"{check['name']}: {check['error']}" for check in verdict["checks"] if check["error"])
    return next(found, None)


def _no_verdicts(why: str) -> DataError:
    return DataError(f"the reply holds no verdicts: {why}")


def _check_answered(verdicts: Sequence[Any], expected: int) -> None:
    if len(verdicts) != expected:
        raise DataError(f"the reply holds {len(verdicts)} verdicts for {expected} items")


def _item(row: Any) -> Item | str:
    try:
        return Item.model_validate(row)
    except ValidationError as error:
        return f"the item is not valid: {bodies.first_problem(error)}"
