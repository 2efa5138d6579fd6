"""Requests are read whole or refused with a reason, whatever bytes a stranger sends."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.errors import DataError
from veripo_ray.records import Kind, Verdict
from veripo_ray.verifier import wire
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.verify import Item, undecided, verify

FORMATS = {wire.JSON: lambda value: json.dumps(value).encode(), wire.MSGPACK: msgpack.packb}
ITEM = Item(kind=Kind.CHOICE, gold="B", options=("red", "blue"), response="<think> so B")
ROW = ITEM.model_dump(mode="json")

both = pytest.mark.parametrize("media_type", FORMATS)
plain_or_not = pytest.mark.parametrize(
    "read_verdicts", [wire.read_verdicts, wire.read_plain_verdicts]
)


def read(media_type: str, message: Any, max_items: int = 100) -> list[Item | str]:
    return wire.read_items(FORMATS[media_type](message), media_type, max_items)


@both
def test_items_survive_the_trip(media_type):
    assert read(media_type, {"items": [ROW, ROW]}) == [ITEM, ITEM]
    assert wire.read_items(wire.write_items([ITEM]), wire.MSGPACK, 1) == [ITEM]


@both
def test_an_item_that_is_not_valid_says_why_and_the_others_are_read(media_type):
    rows = [ROW, ROW | {"kind": "essay"}, {"response": 3}, ROW | {"colour": "red"}, ROW]
    first, essay, number, unknown, last = read(media_type, {"items": rows})
    assert first == last == ITEM
    assert "kind" in essay
    assert "kind" in number
    assert "colour" in unknown


@both
@pytest.mark.parametrize("message", [[], {}, {"items": 3}, {"items": [], "more": 1}, "items", 7])
def test_what_is_no_request_is_refused_with_the_shape_that_is(media_type, message):
    with pytest.raises(DataError, match="items"):
        read(media_type, message)


@both
def test_too_many_items_are_too_large(media_type):
    with pytest.raises(wire.TooLargeError, match="3 items, more than 2"):
        read(media_type, {"items": [ROW] * 3}, max_items=2)


@both
@pytest.mark.parametrize(
    "row",
    [
        3,
        [[[[]]]],
        {"gold": [1, 2]},
        {"gold": {"a": 1}},
        {"options": "x"},
        {"options": ["x"] * 65},
        {str(n): n for n in range(17)},
    ],
)
def test_whatever_an_item_is_the_one_beside_it_is_read(media_type, row):
    odd, item = read(media_type, {"items": [ROW | row if isinstance(row, dict) else row, ROW]})
    assert odd.startswith("the item is not valid")
    assert item == ITEM


def test_lone_surrogates_do_not_break_the_reply():
    body = b'{"items": [{"kind": "choice", "gold": "B", "\\ud800": 1, "response": "\\ud800"}]}'
    (problem,) = wire.read_items(body, wire.JSON, 1)
    assert isinstance(problem, str)
    problem.encode()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(json_values | st.fixed_dictionaries({"kind": json_values}), max_size=4))
def test_any_items_are_read_or_explained(rows):
    body = json.dumps({"items": rows}).encode()
    assert len(wire.read_items(body, wire.JSON, 10)) == len(rows)


@both
def test_verdicts_are_written_in_both_formats(media_type):
    verdicts = verify([ITEM], Rules())
    body = wire.write_verdicts(verdicts, media_type)
    if media_type == wire.MSGPACK:
        assert wire.read_verdicts(body, 1) == verdicts
        (plain,) = wire.read_plain_verdicts(body, 1)
        assert Verdict.model_validate(plain) == verdicts[0]
    else:
        assert json.loads(body)["verdicts"][0]["checks"][0]["name"] == "format"


@plain_or_not
@pytest.mark.parametrize(
    "message",
    [{}, [1], {"verdicts": 3}, {"verdicts": [3]}, {"verdicts": [{"checks": [{"name": "a"}]}]}],
)
def test_a_reply_that_holds_no_verdicts_is_refused(read_verdicts, message):
    with pytest.raises(DataError, match="no verdicts"):
        read_verdicts(msgpack.packb(message), 1)


@plain_or_not
@pytest.mark.parametrize("reply", [b"", b"\xc1"])
def test_a_reply_that_is_not_msgpack_is_refused(read_verdicts, reply):
    with pytest.raises(DataError, match="msgpack"):
        read_verdicts(reply, 1)


@plain_or_not
def test_a_reply_of_another_length_is_refused(read_verdicts):
    body = wire.write_verdicts(verify([ITEM], Rules()), wire.MSGPACK)
    with pytest.raises(DataError, match="1 verdicts for 2 items"):
        read_verdicts(body, 2)


@plain_or_not
@pytest.mark.parametrize(
    ("name", "value"),
    [("name", "colour"), ("passed", "maybe"), ("value", "much"), ("reason", None), ("error", 3),
     ("evidence", [{"start": -1, "end": 2}]), ("evidence", [{"start": 1}]), ("colour", "red")],
)  # fmt: skip
def test_any_verdict_that_is_not_one_is_refused(read_verdicts, name, value):
    good = verify([ITEM], Rules())[0].model_dump()
    bad = {"checks": [*good["checks"][:-1], good["checks"][-1] | {name: value}]}
    read_verdicts(msgpack.packb({"verdicts": [good, good]}), 2)
    with pytest.raises(DataError, match=f"no verdicts: verdicts.1.checks.5.{name}"):
        read_verdicts(msgpack.packb({"verdicts": [good, bad]}), 2)


def test_the_error_of_a_plain_verdict_is_that_of_the_verdict():
    for verdict in (*verify([ITEM], Rules()), undecided("the judge is down")):
        assert wire.first_error(verdict.model_dump()) == verdict.error
