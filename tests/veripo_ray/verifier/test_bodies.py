"""Messages of strangers are measured before they are built, whatever their bytes."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.errors import DataError
from veripo_ray.verifier import bodies
from veripo_ray.verifier.bodies import JSON, MSGPACK, TooLargeError

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=40), inner, max_size=20)
    ),
    max_leaves=30,
)


@given(plain)
def test_plain_values_are_read_as_they_were_written(value):
    assert bodies.parse(msgpack.packb(value), MSGPACK, 10_000) == value
    assert bodies.parse(json.dumps(value).encode(), JSON, 10_000) == value


@given(st.binary(max_size=200), st.sampled_from([JSON, MSGPACK]))
def test_any_bytes_are_read_or_refused(body, media_type):
    with suppress(DataError):
        bodies.parse(body, media_type, 50)


@given(plain, st.integers(0, 400))
def test_a_message_cut_short_or_added_to_is_refused(value, cut):
    body = msgpack.packb(value)
    for wrong in (body[: cut % len(body)], body + b"\x00"):
        with pytest.raises(DataError):
            bodies.parse(wrong, MSGPACK, 10_000)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[NaN]",
        b"[-Infinity]",
        b"[1e999]",
        b"[" + b"9" * 5000 + b"]",
        b'{"a": "' + b'\\"' * 200_000,
        b"[" * 5000,
        b'["\xff"]',
    ],
)
def test_what_is_not_json_is_refused(body):
    with pytest.raises(DataError, match="application/json"):
        bodies.parse(body, JSON, 100_000)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), b"bytes", msgpack.ExtType(1, b"x"), {1: 2}, {"a": [b"x"]}],
)
def test_what_json_has_no_word_for_is_refused_in_msgpack(value):
    with pytest.raises(DataError, match="application/msgpack"):
        bodies.parse(msgpack.packb(value), MSGPACK, 100)


@pytest.mark.parametrize("head", ["\xdd", "\xdf", "\xdb", "\xc6", "\xc9"])
def test_a_header_of_four_thousand_million_is_refused(head):
    with pytest.raises(DataError):
        bodies.parse(head.encode("latin1") + b"\xff" * 4, MSGPACK, 100)


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"[" + b"[]," * 1_000_000 + b"[]]", JSON),
        (b"\xdd\x00\x0f\x42\x40" + b"\x90" * 1_000_000, MSGPACK),
        (b"\x91" * 1_000_000 + b"\x90", MSGPACK),
        (b"\x81\xa1a" * 500_000 + b"\x90", MSGPACK),
    ],
)
def test_a_bomb_costs_no_more_than_its_own_size(body, media_type):
    """A million empty arrays would take 56 MB."""
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match="values"):
            bodies.parse(body, media_type, 1000)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body) + 2**20
    finally:
        tracemalloc.stop()


def test_commas_and_brackets_inside_texts_are_not_counted():
    text = "[{," * 10_000 + '\\"'
    assert bodies.parse(json.dumps([text]).encode(), JSON, 3) == [text]
