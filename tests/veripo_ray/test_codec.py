"""Records survive the wire; what is not a record, or too much of one, is refused."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veripo_ray import codec
from veripo_ray.errors import DataError
from veripo_ray.records import (
    Check,
    Group,
    JudgedGroup,
    Kind,
    Question,
    Reward,
    Rollout,
    Span,
    Verdict,
)

texts = st.text(min_size=1, max_size=40)
finite32 = st.floats(-100, 0, width=32)
questions = st.builds(
    Question,
    id=texts,
    text=texts,
    kind=st.sampled_from(Kind),
    gold=texts,
    options=st.lists(texts, max_size=4).map(tuple),
    video=st.none() | texts,
    images=st.just(()),
)
token_lists = st.lists(st.integers(0, 2**31 - 1), max_size=20)
rollouts = token_lists.flatmap(
    lambda ids: st.builds(
        Rollout,
        text=st.text(max_size=40),
        token_ids=st.just(ids),
        logprobs=st.lists(finite32, min_size=len(ids), max_size=len(ids)),
        finish_reason=st.sampled_from(["stop", "length"]),
        policy_version=st.integers(0, 10**6),
    )
)
groups = st.builds(
    Group,
    id=texts,
    question=questions,
    prompt_ids=token_lists,
    rollouts=st.lists(rollouts, max_size=3).map(tuple),
    rewards=st.lists(
        st.builds(Reward, accuracy=st.floats(0, 1), format=st.sampled_from([0.0, 0.5])), max_size=3
    ).map(tuple),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(groups, max_size=3))
def test_records_come_back_equal(rows: list[Group]) -> None:
    assert codec.unpack_many(codec.pack_many(rows), Group) == rows


@settings(max_examples=50, deadline=None)
@given(groups)
def test_records_come_back_equal_from_json(group: Group) -> None:
    assert Group.model_validate_json(group.model_dump_json()) == group


def test_vectors_are_raw_bytes_and_come_back_as_numpy() -> None:
    group = _group()
    plain = msgpack.unpackb(codec.pack(group))["d"][0]
    assert plain["prompt_ids"] == np.array([7, 8], "<i4").tobytes()
    back = codec.unpack(codec.pack(group), Group)
    assert back.rollouts[0].logprobs.dtype == np.float32
    assert back.prompt_ids.tolist() == [7, 8]


def test_a_shard_is_read_from_a_memoryview_without_a_copy_of_it() -> None:
    shard = codec.to_array(codec.pack(_group()))
    shard.setflags(write=False)
    assert codec.unpack(memoryview(shard), Group) == _group()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_data_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(DataError):
        codec.unpack_many(data, Group)


@pytest.mark.parametrize(
    "bomb",
    [
        msgpack.packb({"v": 1, "t": "Group", "d": msgpack.ExtType(5, b"x")}),
        msgpack.packb({1: 2}),
        b"\xdd\xff\xff\xff\xff",  # an array of 4 billion items
        b"\x91" * 5000,  # nested arrays
        msgpack.packb([[]] * (codec.Limits().items + 1)),
    ],
    ids=["extension", "integer key", "huge header", "deep nesting", "many arrays"],
)
def test_a_bomb_is_refused(bomb: bytes) -> None:
    with pytest.raises(DataError):
        codec.unpack_many(bomb, Group)


def test_a_message_over_the_body_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(DataError, match="over the limit of 10"):
        codec.load_plain(b"x" * 11, codec.Limits(body_bytes=10))


def test_another_version_or_type_says_so() -> None:
    message = codec.load_plain(codec.pack(_group()))
    newer = msgpack.packb({**message, "v": 99})
    with pytest.raises(DataError, match="version 99"):
        codec.unpack_many(newer, Group)
    with pytest.raises(DataError, match="expected records of type JudgedGroup, got 'Group'"):
        codec.unpack_many(codec.pack(_group()), JudgedGroup)


def test_a_malformed_field_is_named() -> None:
    message = codec.load_plain(codec.pack(_group()))
    message["d"][0]["question"]["kind"] = "riddle"
    with pytest.raises(DataError, match=r"question\.kind"):
        codec.unpack_many(msgpack.packb(message), Group)


def test_one_message_holds_one_type() -> None:
    with pytest.raises(TypeError, match="one type"):
        codec.pack_many([_group(), JudgedGroup(group_id="a")])
    with pytest.raises(DataError, match="expected one Group record, got 2"):
        codec.unpack(codec.pack_many([_group(), _group()]), Group)


def test_an_error_of_any_check_is_the_verdicts_error() -> None:
    fine = Check(name="format", passed=True, reason="ok", evidence=(Span(start=0, end=3),))
    broken = Check(name="consistency", passed=None, reason="?", error="judge timed out")
    verdict = Verdict(checks=(fine, broken))
    assert verdict.error == "consistency: judge timed out"
    assert verdict.consistent is None


def test_token_ids_must_be_a_vector_of_integers() -> None:
    for wrong in ([[1, 2]], [1.5], ["a"]):
        with pytest.raises(ValueError, match="expected"):
            Group(id="g", question=_group().question, prompt_ids=wrong, rollouts=())


def _group() -> Group:
    question = Question(id="q", text="which?", kind=Kind.CHOICE, gold="B", options=("x", "y"))
    rollout = Rollout(
        text="B", token_ids=[1, 2], logprobs=[-0.5, -1.0], finish_reason="stop", policy_version=3
    )
    return Group(id="1.q", question=question, prompt_ids=[7, 8], rollouts=(rollout,))
