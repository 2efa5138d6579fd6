"""The circuit breaker's transitions, by a clock that the tests set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.verifier.judges.breaker import Breaker, State


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(3, 10.0, clock)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failed(breaker.admit())


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not_count(breaker):
    fail(breaker, 2)
    breaker.succeeded(breaker.admit())
    fail(breaker, 2)
    assert breaker.state is State.CLOSED
    fail(breaker, 1)
    assert breaker.state is State.OPEN
    assert breaker.admit() is None


def test_after_the_pause_one_trial_passes_and_no_other(breaker, clock):
    fail(breaker, 3)
    clock.now += 9.9
    assert breaker.admit() is None
    assert breaker.wait_s == pytest.approx(0.1)
    clock.now += 0.1
    trial = breaker.admit()
    assert trial is not None
    assert breaker.state is State.HALF_OPEN
    assert breaker.admit() is None
    breaker.succeeded(trial)
    assert breaker.state is State.CLOSED
    assert breaker.admit() is not None
    assert breaker.admit() is not None


def test_a_failed_trial_opens_it_for_another_pause(breaker, clock):
    fail(breaker, 3)
    clock.now += 10
    breaker.failed(breaker.admit())
    assert breaker.state is State.OPEN
    clock.now += 9
    assert breaker.admit() is None
    clock.now += 1
    assert breaker.admit() is not None


def test_a_trial_that_is_given_up_leaves_room_for_the_next_at_once(breaker, clock):
    fail(breaker, 3)
    clock.now += 10
    breaker.given_up(breaker.admit())
    assert breaker.state is State.OPEN
    assert breaker.admit() is not None
    assert breaker.state is State.HALF_OPEN


def test_what_was_let_through_before_says_nothing_about_the_state_after(breaker, clock):
    late, later, latest = (breaker.admit() for _ in range(3))
    fail(breaker, 3)
    breaker.succeeded(late)
    assert breaker.state is State.OPEN
    clock.now += 10
    trial = breaker.admit()
    breaker.failed(later)
    breaker.given_up(latest)
    assert breaker.state is State.HALF_OPEN
    breaker.succeeded(trial)
    assert breaker.state is State.CLOSED


def test_cases_given_up_open_nothing(breaker):
    for _ in range(10):
        breaker.given_up(breaker.admit())
    assert breaker.state is State.CLOSED


@given(
    st.lists(
        st.one_of(
            st.just(("admit", 0.0)),
            st.tuples(st.sampled_from(["succeeded", "failed", "given_up"]), st.floats(0, 1)),
            st.tuples(st.just("time"), st.floats(0, 20)),
        ),
        max_size=200,
    )
)
def test_whatever_happens_at_most_one_trial_runs_and_the_pause_is_kept(events):
    clock = Clock()
    breaker = Breaker(3, 10.0, clock)
    held: list[tuple[int, bool]] = []  # passes, and whether each is a trial
    opened_at = None
    for event, number in events:
        before = breaker.state
        if event == "time":
            clock.now += number
        elif event == "admit":
            admitted = breaker.admit()
            if admitted is not None:
                held.append((admitted, breaker.state is State.HALF_OPEN))
        elif held:
            admitted, trial = held.pop(int(number * (len(held) - 1)))
            getattr(breaker, event)(admitted)
            if before is State.OPEN:
                assert breaker.state is State.OPEN
            if breaker.state is State.CLOSED and before is not State.CLOSED:
                assert trial
                assert event == "succeeded"
            if breaker.state is State.OPEN and before is not State.OPEN:
                opened_at = clock.now if event == "failed" else None
        if breaker.state is State.HALF_OPEN and before is State.OPEN and opened_at is not None:
            assert clock.now >= opened_at + 10
        assert sum(trial for _, trial in held) <= 1
