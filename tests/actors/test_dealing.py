"""Questions go where there is room, every one once, and their groups come out as they finish."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle

from actors.dealing import Dealer, deal_out, requests
from actors.feed import Task
from veripo_ray.errors import DataError
from veripo_ray.records import Group, Kind, Question
from veripo_ray.sampler import Sampled


def _tasks(count: int, features: Any = None) -> list[Task]:
    rows = [Question(id=f"q{n}", text="?", kind=Kind.NUMERIC, gold="1") for n in range(count)]
    return [Task(row, np.array([1, 2], np.int32), features) for row in rows]


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 6))
def test_first_shares_are_equal_and_fit_and_nothing_is_dealt_twice(count, workers, room) -> None:
    shares, left = deal_out(_tasks(count), workers, room)
    sizes = [len(share) for share in shares]
    assert max(sizes) <= room
    assert max(sizes) - min(sizes) <= 1
    assert not left or min(sizes) == room
    ids = [id_ for share in (*shares, left) for id_, _, _ in share]
    assert sorted(ids) == sorted(task.question.id for task in _tasks(count))
    assert [id_ for id_, _, _ in left] == [f"q{n}" for n in range(count - len(left), count)]


class _Worker:
    """Samples one question at a time, `pause` seconds each, and fails at one of them."""

    def __init__(self, pause: float, bad: str = "") -> None:
        self.pause, self.bad = pause, bad
        self.asked: list[str] = []

    def sample(self, share: Any, dealer: Any, name: str, **_: Any) -> Iterator[list[Sampled]]:
        for request in requests(share, dealer, name):
            self.asked.append(request.id)
            assert request.features == ("features",)
            time.sleep(self.pause)
            if request.id == self.bad:
                raise DataError(f"request {request.id!r} cannot be answered")
            yield [Sampled(request.id, request.prompt_ids, ())]

    def taken(self) -> list[str]:
        return self.asked


class _Leader:
    """Hosts a dealer as the coordinator does."""

    def __init__(self) -> None:
        self.dealer = Dealer(max_num_seqs=4, limit_s=60)

    async def deal(self, name: str) -> Any:
        return self.dealer.deal(name)

    async def all(self, count: int, workers: list[Any], stop_after: int = 1000) -> list[Group]:
        features = SimpleNamespace(ref=ray.put(("features",)))
        groups = self.dealer.groups(_tasks(count, features.ref), "a", workers, {"n": 2})
        found = []
        async for group in groups:
            found.append(group)
            if len(found) == stop_after:
                break
        await groups.aclose()  # type: ignore[attr-defined]
        return found


@pytest.fixture
def actor(ray_session: str) -> Iterator[Any]:
    """actor(class, ...): one that ends with the test. Workers cannot import this module."""
    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)
    made = []

    def create(kind: type, *arguments: Any) -> Any:
        made.append(ray.remote(kind).options(num_cpus=0).remote(*arguments))
        return made[-1]

    yield create
    cloudpickle.unregister_pickle_by_value(here)
    for handle in made:
        ray.kill(handle)


def _get(reference: Any) -> Any:
    return ray.get(reference, timeout=120)


def test_a_slow_worker_leaves_the_rest_to_the_others(actor) -> None:
    quick, slow = actor(_Worker, 0.0), actor(_Worker, 1.5)
    assert _get([quick.taken.remote(), slow.taken.remote()]) == [[], []]  # both are up
    groups = _get(actor(_Leader).all.remote(16, [quick, slow]))
    assert sorted(group.id for group in groups) == sorted(f"a.q{n}" for n in range(16))
    taken = _get([quick.taken.remote(), slow.taken.remote()])
    assert len(taken[0]) + len(taken[1]) == 16
    assert len(taken[1]) <= 4  # its share of two, the one asked for ahead, and perhaps one more


def test_one_worker_gets_every_question_in_order(actor) -> None:
    worker = actor(_Worker, 0.0)
    _get(actor(_Leader).all.remote(12, [worker]))
    assert _get(worker.taken.remote()) == [f"q{n}" for n in range(12)]


def test_a_worker_that_fails_ends_the_sampling_with_its_reason(actor) -> None:
    workers = [actor(_Worker, 0.0, "q5"), actor(_Worker, 0.0, "q5")]
    with pytest.raises(DataError, match="'q5' cannot be answered"):
        _get(actor(_Leader).all.remote(30, workers))


def test_who_leaves_early_ends_the_dealing(actor) -> None:
    workers = [actor(_Worker, 0.05), actor(_Worker, 0.05)]
    _get([worker.taken.remote() for worker in workers])  # both are up
    assert len(_get(actor(_Leader).all.remote(200, workers, 3))) == 3
    taken = _get([worker.taken.remote() for worker in workers])  # when their sampling is over
    assert sum(map(len, taken)) < 100
