"""Which frames of a video become a clip, and how large they are.

The rules are those of Qwen2.5-VL's `qwen-vl-utils` (`smart_nframes`, `smart_resize`), which
VerIPO's evaluation uses with 2 frames a second, at most 128 frames and 200,704 pixels a frame.
Budgets are limits: a long video is sampled more thinly over its whole length, never cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

TEMPORAL_PATCH = 2  # the tower takes frames in pairs
MIN_FRAMES = 4
MAX_ASPECT_RATIO = 200.0


def frame_indices(seconds_N: np.ndarray, fps: float, max_frames: int) -> np.ndarray:
    """Which of N frames to take: int64 [T], T even, spread evenly from the first to the last.

    seconds_N [N] float64 are the frames' timestamps, in order. T follows `frame_count`. A video
    of one frame gives it twice, as the tower wants pairs; otherwise no frame is taken twice.
    Raises ValueError for timestamps that are missing or run backwards.
    """
    total = len(seconds_N)
    if total == 1:
        return np.zeros(TEMPORAL_PATCH, dtype=np.int64)
    if not (np.diff(seconds_N) >= 0).all() or seconds_N[0] == seconds_N[-1]:
        raise ValueError("its timestamps are missing or run backwards")
    count = frame_count(total, duration(seconds_N), fps, max_frames)
    if _is_steady(seconds_N):
        return np.linspace(0, total - 1, count).round().astype(np.int64)
    return _nearest(seconds_N, np.linspace(seconds_N[0], seconds_N[-1], count))


def frame_count(total: int, duration_s: float, fps: float, max_frames: int) -> int:
    """How many of `total` >= 2 frames: duration x fps, even, between 4 and max_frames."""
    if max_frames < TEMPORAL_PATCH:
        raise ValueError(f"at least {TEMPORAL_PATCH} frames make a clip, not {max_frames}")
    wanted = math.floor(duration_s * fps * (1 + 2e-7))  # float32 timestamps make 8 s 7.9999998 s
    count = min(max(wanted, MIN_FRAMES), max_frames, total)
    return count // TEMPORAL_PATCH * TEMPORAL_PATCH


def duration(seconds_N: np.ndarray) -> float:
    """Seconds that N >= 2 frames last, the last one for as long as the mean of the others."""
    total = len(seconds_N)
    return float(seconds_N[-1] - seconds_N[0]) * total / (total - 1)


def sampled_fps(seconds_N: np.ndarray, count: int, fps: float) -> float:
    """Frames a second after sampling, the rate that temporal positions are made from.

    A single frame lasts no known time; it is given the rate that was asked for.
    """
    lasts = duration(seconds_N) if len(seconds_N) > 1 else 0.0
    return count / lasts if lasts > 0 else fps


def _is_steady(seconds_N: np.ndarray) -> bool:
    """Whether every frame is within half a frame of where a constant rate puts it."""
    even = np.linspace(seconds_N[0], seconds_N[-1], len(seconds_N))
    return bool(np.abs(seconds_N - even).max() <= (even[1] - even[0]) / 2)


def _nearest(seconds_N: np.ndarray, wanted_T: np.ndarray) -> np.ndarray:
    """The frame nearest to each wanted time, each frame once: T <= N, both in order."""
    total, count = len(seconds_N), len(wanted_T)
    after = np.clip(np.searchsorted(seconds_N, wanted_T), 1, total - 1)
    earlier = wanted_T - seconds_N[after - 1] <= seconds_N[after] - wanted_T
    steps = np.arange(count)
    # strictly rising: push doubles up, then whatever ran over the end back down
    rising = np.maximum.accumulate(after - earlier - steps) + steps
    return np.minimum(rising, total - count + steps).astype(np.int64)


def target_size(
    size: Sequence[int], min_pixels: int, max_pixels: int, factor: int = 28
) -> tuple[int, int]:
    """The (height, width) to resize `size` to: multiples of `factor`, aspect ratio nearly kept.

    At most max_pixels in area, always; at least min_pixels where both can be had. `factor` is
    the tower's patch times its merge. Raises ValueError for sides more than 200:1, or when not
    even one block of factor x factor fits max_pixels.
    """
    height, width = size
    if min(height, width) < 1 or max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(f"its frames are {width}x{height} pixels: more than 200 to 1")
    if factor * factor > max_pixels:
        raise ValueError(f"max_pixels {max_pixels} holds no block of {factor}x{factor} pixels")
    rows, columns = max(1, round(height / factor)), max(1, round(width / factor))
    blocks = max_pixels // factor**2
    if rows * columns * factor**2 < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * scale / factor)
        columns = math.ceil(width * scale / factor)
    if rows * columns > blocks:
        shrink = math.sqrt((height * width) / max_pixels)  # divided by, as theirs: 1080p must agree
        rows = max(1, min(math.floor(height / shrink / factor), blocks))
        columns = max(1, min(math.floor(width / shrink / factor), blocks // rows))
    return rows * factor, columns * factor


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """frame [h, w, 3] uint8 at (height, width): bicubic with antialiasing, as Qwen's processors.

    A frame that already has that size is not touched.
    """
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC))
