from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from veripo_ray.video import sampling

gaps = st.lists(st.floats(0.001, 2.0), min_size=1, max_size=200)


def steady(total: int, fps: float) -> np.ndarray:
    return (np.arange(total) / fps).astype(np.float32).astype(np.float64)  # as decord gives them


@given(gaps=gaps, fps=st.floats(0.1, 60), max_frames=st.integers(2, 64))
def test_indices_rise_from_the_first_frame_to_the_last_within_the_budget(gaps, fps, max_frames):
    seconds = np.concatenate([[0.0], np.cumsum(gaps)])
    indices = sampling.frame_indices(seconds, fps, max_frames)
    assert len(indices) % 2 == 0
    assert 2 <= len(indices) <= max_frames
    assert (np.diff(indices) > 0).all()
    assert indices[0] == 0
    assert indices[-1] == len(seconds) - 1


@given(total=st.integers(4, 5000), rate=st.sampled_from([10, 24, 25, 29.97, 30, 60]))
def test_a_steady_video_is_sampled_as_the_papers_evaluation_does(total, rate):
    indices = sampling.frame_indices(steady(total, rate), 2.0, 128)
    count = min(max(round(total / rate * 2, 5), 4), 128, total) // 2 * 2
    assert indices.tolist() == np.linspace(0, total - 1, int(count)).round().tolist()


def test_whole_seconds_are_not_lost_to_rounding():
    assert len(sampling.frame_indices(steady(40, 10), 2.0, 128)) == 8
    assert len(sampling.frame_indices(steady(108_000, 30), 0.01, 128)) == 36


def test_an_uneven_video_is_sampled_evenly_in_time():
    burst = np.concatenate([np.arange(100) / 100, [10.0, 20.0, 30.0]])
    taken = burst[sampling.frame_indices(burst, 0.2, 4)]
    assert taken.tolist() == [0.0, 10.0, 20.0, 30.0]


def test_a_long_video_is_thinned_over_its_whole_length_and_fps_tells():
    seconds = steady(3000, 30)
    indices = sampling.frame_indices(seconds, 2.0, 16)
    assert (len(indices), indices[-1]) == (16, 2999)
    assert sampling.sampled_fps(seconds, 16, 2.0) == pytest.approx(16 / 100, rel=1e-5)


def test_one_frame_is_taken_twice_because_the_tower_wants_pairs():
    one = np.array([0.0])
    assert sampling.frame_indices(one, 2.0, 128).tolist() == [0, 0]
    assert sampling.sampled_fps(one, 2, 2.0) == 2.0


@pytest.mark.parametrize("seconds", [[0, 0, 0], [0, 2, 1, 3], [0, np.nan, 1], [np.nan] * 3])
def test_useless_timestamps_are_an_error(seconds):
    with pytest.raises(ValueError, match="missing or run backwards"):
        sampling.frame_indices(np.array(seconds, dtype=float), 2.0, 16)


def test_a_budget_below_a_pair_is_an_error():
    with pytest.raises(ValueError, match="at least 2"):
        sampling.frame_indices(steady(10, 10), 2.0, 1)


sides = st.integers(1, 4000)


@given(
    sides, sides, st.integers(784, 500_000), st.integers(784, 500_000), st.sampled_from([28, 32])
)
def test_sizes_are_whole_blocks_within_the_budget(height, width, low, high, factor):
    assume(max(height, width) <= 200 * min(height, width) and high >= factor * factor)
    h, w = sampling.target_size((height, width), low, high, factor)
    assert h % factor == w % factor == 0
    assert factor * factor <= h * w <= high
    if high >= 4 * low and max(height, width) <= 4 * min(height, width):
        assert h * w >= low


@given(st.integers(200, 4000), st.integers(200, 4000))
def test_the_aspect_ratio_is_kept_within_two_blocks(height, width):
    assume(max(height, width) <= 4 * min(height, width))
    h, w = sampling.target_size((height, width), 3136, 200_704)
    scale = (h * w / (height * width)) ** 0.5
    assert abs(h - scale * height) < 56
    assert abs(w - scale * width) < 56


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 854), (308, 588)),
        ((1080, 1920), (336, 588)),
        ((28, 56), (28, 56)),
        ((100, 100), (112, 112)),
    ],
)
def test_known_sizes(size, expected):
    assert sampling.target_size(size, 784, 200_704) == expected


@pytest.mark.parametrize("size", [(1, 201), (0, 5), (6000, 28)])
def test_absurd_aspect_ratios_are_an_error(size):
    with pytest.raises(ValueError, match="200 to 1"):
        sampling.target_size(size, 784, 200_704)


def test_a_pixel_budget_below_one_block_is_an_error():
    with pytest.raises(ValueError, match="holds no block of 28x28"):
        sampling.target_size((100, 100), 1, 783)


def test_resizing_leaves_a_fitting_frame_untouched():
    frame = np.random.default_rng(0).integers(0, 255, (28, 56, 3), dtype=np.uint8)
    assert sampling.resize(frame, (28, 56)) is frame
    assert sampling.resize(frame, (56, 28)).shape == (56, 28, 3)
