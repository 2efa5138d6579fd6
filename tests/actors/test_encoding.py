"""Questions that are asked together share calls of the encoder; each gets its own answer."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest
import ray
from ray import cloudpickle

from actors import encoding
from actors.encoding import Encoding
from veripo_ray.errors import DataError, LostError
from veripo_ray.records import Kind, Question

THREADS = 2


class Encoder:
    """Its features say whose they are; it keeps how many came with each call."""

    def __init__(self, size: int) -> None:
        self.size, self.calls = size, []

    def encode(self, questions):
        self.calls.append([question.id for question in questions])
        sizes = [DataError(q.id) if q.id.startswith("bad") else self.size for q in questions]
        return sizes, *(f"features of {question.id}" for question in questions)

    def asked(self):
        return self.calls

    def anew(self, size):
        self.__init__(size)

    def die(self):
        os._exit(1)


@pytest.fixture(scope="module")
def handle(ray_session):
    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)  # actors cannot import this module
    handle = ray.remote(Encoder).options(num_cpus=0).remote(1000)
    cloudpickle.unregister_pickle_by_value(here)
    yield handle
    ray.kill(handle)


@pytest.fixture
def encoder(handle, request):
    ray.get(handle.anew.remote(getattr(request, "param", 1000)), timeout=60)
    return handle


def named(id_: str) -> Question:
    return Question(id=id_, text="?", kind=Kind.NUMERIC, gold="1", video=f"{id_}.mp4")


async def all_of(encoder, names):
    queue = Encoding(encoder, THREADS, 60)
    return await asyncio.gather(*(queue.of(named(name)) for name in names), return_exceptions=True)


def calls_of(encoder):
    return ray.get(encoder.asked.remote(), timeout=60)


def test_every_question_gets_its_own_features_and_none_is_asked_twice(encoder):
    names = [f"q{n}" for n in range(200)]
    answers = asyncio.run(all_of(encoder, names))
    assert [size for size, _ in answers] == [1000] * 200
    found = ray.get([features for _, features in answers], timeout=60)
    assert found == [f"features of {name}" for name in names]
    calls = calls_of(encoder)
    assert sorted(name for call in calls for name in call) == sorted(names)
    assert max(map(len, calls)) == encoding.CALL_QUESTIONS
    assert len(calls) < 50  # of 13 full ones, and the first and the last of fewer


def test_until_sizes_are_known_and_towards_the_end_questions_go_one_by_one(encoder):
    asyncio.run(all_of(encoder, [f"q{n}" for n in range(100)]))
    calls = calls_of(encoder)
    at_once = THREADS * encoding.CALLS_A_THREAD
    assert [len(call) for call in calls[:at_once]] == [1] * at_once
    assert len(calls[-1]) == 1


@pytest.mark.parametrize("encoder", [encoding.CALL_BYTES // 3], indirect=True)
def test_features_of_a_call_stay_within_its_bytes(encoder):
    asyncio.run(all_of(encoder, [f"q{n}" for n in range(100)]))
    assert max(len(call) for call in calls_of(encoder)) == 3


def test_media_that_cannot_be_used_are_an_error_of_their_question_alone(encoder):
    names = ["a", "bad 1", "b", "bad 2", "c"] * 10
    answers = asyncio.run(all_of(encoder, names))
    for name, answer in zip(names, answers, strict=True):
        if name.startswith("bad"):
            assert isinstance(answer, DataError)
            assert answer.problem == name
        else:
            assert answer[0] == 1000


def test_who_does_not_wait_any_more_is_not_encoded(encoder):
    async def some_leave():
        queue = Encoding(encoder, THREADS, 60)
        waits = [asyncio.ensure_future(queue.of(named(f"q{n}"))) for n in range(20)]
        await asyncio.sleep(0)
        for wait in waits[10:]:
            wait.cancel()
        return await asyncio.gather(*waits, return_exceptions=True)

    answers = asyncio.run(some_leave())
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[10:])
    assert {name for call in calls_of(encoder) for name in call} == {f"q{n}" for n in range(10)}


def test_a_lost_encoder_is_an_error_for_all_who_wait(encoder):
    async def lost():
        encoder.die.remote()
        return await all_of(encoder, [f"q{n}" for n in range(50)])

    answers = asyncio.run(lost())
    assert all(isinstance(answer, LostError) for answer in answers)
