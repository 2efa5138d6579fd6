"""Overlapping work is timed once, and what is still open is counted up to now."""

from __future__ import annotations

import time

import pytest

from actors.busy import Busy


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_two_pieces_at_once_take_no_longer_than_one(clock: list[float]) -> None:
    busy = Busy()
    with busy.work():
        clock[0] += 1
        with busy.work():
            clock[0] += 2
        clock[0] += 1
    clock[0] += 50  # idle
    assert busy.take() == 4
    assert busy.take() == 0


def test_open_work_counts_up_to_now_and_goes_on(clock: list[float]) -> None:
    busy = Busy()
    with busy.work():
        clock[0] += 1
        assert busy.take() == 1
        clock[0] += 2
    assert busy.take() == 2


def test_work_that_fails_counts_too(clock: list[float]) -> None:
    busy = Busy()

    def fail() -> None:
        with busy.work():
            clock[0] += 3
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert busy.take() == 3
