"""Time left is told from what has been seen, and from nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.progress import Eta
from veripo_ray.progress.formats import duration, share, with_error


def test_nothing_is_told_before_anything_was_seen() -> None:
    assert Eta({"grpo": 1.0}).remaining({"grpo": 3}) is None


def test_what_was_seen_counts_and_scales_what_was_not() -> None:
    eta = Eta({"grpo": 1.0, "dpo": 0.25})
    eta.observe("grpo", 8.0)
    eta.observe("grpo", 12.0)
    assert eta.remaining({"grpo": 3, "dpo": 4}) == pytest.approx(3 * 10 + 4 * 2.5)
    eta.observe("dpo", 2.0, units=2)
    assert eta.remaining({"grpo": 1, "dpo": 4}) == pytest.approx(10 + 4 * 1)


def test_a_kind_without_a_prior_counts_once_it_was_seen() -> None:
    eta = Eta({"grpo": 1.0})
    eta.observe("save", 3.0)
    assert eta.remaining({"save": 2}) is None
    eta.observe("grpo", 1.0)
    assert eta.remaining({"save": 2}) == pytest.approx(6.0)
    with pytest.raises(KeyError):
        eta.remaining({"sleep": 1})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"), (48, "48s"), (59.6, "1m 00s"), (185, "3m 05s"), (3599.7, "1h 00m"),
        (8040, "2h 14m"), (97_200, "1d 03h"),
    ],
)  # fmt: skip
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e7))
def test_a_duration_is_right_to_its_smaller_unit(seconds: float) -> None:
    units = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
    parts = duration(seconds).split()
    told = sum(int(part[:-1]) * units[part[-1]] for part in parts)
    assert abs(told - seconds) <= units[parts[-1][-1]]


def test_shares_and_errors_say_when_they_are_unknown() -> None:
    assert share(None) == with_error(None, None) == "–"  # noqa: RUF001
    assert share(0.0) == "0.00"
    assert with_error(0.5, None) == "0.500"
    assert with_error(0.5, 0.0213) == "0.500 ±.021"
