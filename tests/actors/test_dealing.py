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

from actors.dealing import Dealer, deal_out, dealt, handed_over, requests
from actors.feed import Task
from actors.workers import Workers
from veripo_ray import config
from veripo_ray.errors import DataError, EngineError, LostError, ResourceError, VeripoError
from veripo_ray.records import Group, Kind, Question, Rollout
from veripo_ray.sampler import Sampled


def _tasks(count: int, features: Any = None) -> list[Task]:
    rows = [Question(id=f"q{n}", text="?", kind=Kind.NUMERIC, gold="1") for n in range(count)]
    return [Task(row, np.array([1, 2], np.int32), features) for row in rows]


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 6))
def test_first_shares_are_equal_and_fit_and_nothing_is_dealt_twice(count, workers, room) -> None:
    shares, left = deal_out([dealt(task) for task in _tasks(count)], workers, room)
    sizes = [len(share) for share in shares]
    assert max(sizes) <= room
    assert max(sizes) - min(sizes) <= 1
    assert not left or min(sizes) == room
    ids = [id_ for share in (*shares, left) for id_, _, _ in share]
    assert sorted(ids) == sorted(task.question.id for task in _tasks(count))
    assert [id_ for id_, _, _ in left] == [f"q{n}" for n in range(count - len(left), count)]


class _Worker:
    """Samples one question at a time, `pause` seconds each, and fails at one of them."""

    def __init__(self, pause: float, bad: str = "", error: type[VeripoError] = DataError) -> None:
        self.pause, self.bad, self.error = pause, bad, error
        self.asked: list[str] = []
        self.weights = "old"

    def ping(self) -> None: ...

    def catch_up(self) -> None:
        self.weights = "new"

    def sample(self, share: Any, dealer: Any, hand: str, **_: Any) -> Iterator[list[Sampled]]:
        for request in requests(share, dealer, hand):
            self.asked.append(request.id)
            assert request.features == ("features",)
            time.sleep(self.pause)
            if request.id == self.bad:
                raise self.error(f"request {request.id!r} cannot be answered")
            yield [Sampled(request.id, request.prompt_ids, (self._rollout(),))]

    def _rollout(self) -> Rollout:
        return Rollout(
            text=self.weights, token_ids=[1], logprobs=[0.0], finish_reason="stop", policy_version=0
        )

    def taken(self) -> list[str]:
        return self.asked


CANNOT_START = (0.0, "", DataError, "one argument too many")


class _Leader:
    """Hosts a dealer, and the workers, as the coordinator does. `others`: a worker that joins."""

    def __init__(self, others: tuple[Any, ...] = (), **rollout: Any) -> None:
        self.dealer = Dealer(max_num_seqs=4, limit_s=60)
        self.others, self.rollout, self.found = others, rollout, []

    async def deal(self, hand: str) -> Any:
        return self.dealer.deal(hand)

    async def start_worker(self, number: int, limit_s: float) -> Any:
        return ray.remote(_Worker).options(num_cpus=0).remote(*self.others)

    def end_worker(self, number: int, worker: Any) -> None:
        ray.kill(worker)

    can_catch_up = replaces_workers = True

    async def catch_up(self, worker: Any) -> None:
        await worker.catch_up.remote()

    async def all(self, count: int, workers: list[Any], stop_after: int = 1000) -> list[Group]:
        cfg = config.Rollout(**{"workers": len(workers), **self.rollout})
        crew = Workers(cfg, self)
        crew.begin(workers)
        crew.keep()
        features = SimpleNamespace(ref=ray.put(("features",)))
        groups = self.dealer.groups(_tasks(count, features.ref), "a", crew, {"n": 2})
        self.found.clear()
        async for group in groups:
            self.found.append(group)
            if len(self.found) == stop_after:
                break
        await groups.aclose()  # type: ignore[attr-defined]
        joined = [worker for worker in crew.there.values() if worker not in workers]
        for worker in joined:
            ray.kill(worker)
        return self.found

    async def so_far(self) -> int:
        return len(self.found)


@pytest.fixture
def actor(ray_session: str) -> Iterator[Any]:
    """actor(class, ...): one that ends with the test. Workers cannot import this module."""
    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)
    made = []

    def create(kind: type, *arguments: Any, **named: Any) -> Any:
        made.append(ray.remote(kind).options(num_cpus=0).remote(*arguments, **named))
        return made[-1]

    yield create
    cloudpickle.unregister_pickle_by_value(here)
    for handle in made:
        ray.kill(handle)


def _get(reference: Any) -> Any:
    return ray.get(reference, timeout=120)


def _step(*ids: str) -> list[Sampled]:
    return [Sampled(id_, np.zeros(0, np.int32), ()) for id_ in ids]


def test_groups_that_finish_soon_after_each_other_are_handed_over_together() -> None:
    steps = [[], _step("a"), _step("b"), [], _step("c", "d"), []]
    (bundle,) = handed_over((step for step in steps), hold_s=60)
    assert [each.id for each in bundle] == ["a", "b", "c", "d"]
    singly = handed_over((step for step in steps), hold_s=0)
    assert [[each.id for each in bundle] for bundle in singly] == [["a"], ["b"], ["c", "d"]]


def test_a_group_that_has_waited_is_handed_over_at_the_next_step_whatever_that_finishes() -> None:
    def slow() -> Iterator[list[Sampled]]:
        yield from (_step("a"), _step("b"))
        time.sleep(0.03)
        yield from ([], [], _step("c"))

    bundles = handed_over(slow(), hold_s=0.02)
    assert [[each.id for each in bundle] for bundle in bundles] == [["a", "b"], ["c"]]


def test_who_takes_no_more_ends_the_steps() -> None:
    ended = []

    def steps() -> Iterator[list[Sampled]]:
        try:
            while True:
                yield _step("a")
        finally:
            ended.append(True)

    bundles = handed_over(steps(), hold_s=0)
    assert next(bundles)
    bundles.close()
    assert ended


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


def _ids(groups: list[Group]) -> list[str]:
    return sorted(group.question.id for group in groups)


def _wait_for(leader: Any, count: int) -> None:
    deadline = time.monotonic() + 60
    while _get(leader.so_far.remote()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_lost_worker_had_in_hand_goes_to_the_others_and_no_group_comes_twice(actor) -> None:
    """It had answered some of its share, had more of it to come, and had asked for others."""
    lost, left = actor(_Worker, 0.1), actor(_Worker, 0.1)
    _get([lost.taken.remote(), left.taken.remote()])
    leader = actor(_Leader, CANNOT_START)  # nobody takes its place
    sampling = leader.all.remote(40, [lost, left])
    _wait_for(leader, 10)
    ray.kill(lost)
    assert _ids(_get(sampling)) == sorted(f"q{n}" for n in range(40))


def test_the_place_of_the_only_worker_is_taken_by_one_with_the_present_weights(actor) -> None:
    only = actor(_Worker, 0.1)
    leader = actor(_Leader, (0.0,))
    sampling = leader.all.remote(40, [only])
    _wait_for(leader, 3)
    ray.kill(only)
    groups = _get(sampling)
    assert _ids(groups) == sorted(f"q{n}" for n in range(40))
    assert {group.rollouts[0].text for group in groups[-20:]} == {"new"}


def test_a_worker_that_joins_in_the_middle_of_a_sampling_gets_what_nobody_has_yet(actor) -> None:
    slow = actor(_Worker, 0.5)
    _get(slow.taken.remote())
    groups = _get(actor(_Leader, (0.0,), max_workers=2).all.remote(40, [slow]))
    assert _ids(groups) == sorted(f"q{n}" for n in range(40))
    assert {group.rollouts[0].text for group in groups} == {"old", "new"}


def test_an_engine_that_failed_is_replaced_once_and_its_second_failure_ends_the_run(actor) -> None:
    healthy = actor(_Leader, (0.0,))
    groups = _get(healthy.all.remote(12, [actor(_Worker, 0.0, "q5", EngineError)]))
    assert _ids(groups) == sorted(f"q{n}" for n in range(12))
    again = actor(_Leader, (0.0, "q5", EngineError))
    with pytest.raises(EngineError, match="'q5' cannot be answered"):
        _get(again.all.remote(12, [actor(_Worker, 0.0, "q5", EngineError)]))


def test_with_fewer_workers_than_wanted_sampling_waits_and_says_so_in_time(actor) -> None:
    dead = actor(_Worker, 0.0)
    ray.kill(dead)
    leader = actor(_Leader, CANNOT_START, join_timeout_s=2.0)
    with pytest.raises(ResourceError, match=r"0 left, rollout.min_workers = 1"):
        _get(leader.all.remote(4, [dead]))


def test_where_none_can_be_replaced_too_few_are_a_loss_at_once(actor) -> None:
    """Then the run goes back to its last checkpoint, instead of waiting for nobody."""

    class _Colocated(_Leader):
        replaces_workers = False

    dead = actor(_Worker, 0.0)
    ray.kill(dead)
    leader = actor(_Colocated, (0.0,), join_timeout_s=600.0)
    with pytest.raises(LostError, match=r"min_workers = 1; with placement.layout = colocated"):
        _get(leader.all.remote(4, [dead]))
