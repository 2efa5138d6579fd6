from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest


def write_video(
    path: Path,
    frames: int = 24,
    size: tuple[int, int] = (56, 84),
    fps: int = 8,
    codec: str = "libx264",
    seconds: Sequence[float] | None = None,
    noise: bool = False,
    **container: str,
) -> Path:
    """A video of `frames` frames of (height, width); frame k is grey, of level 10 * k % 250."""
    rng = np.random.default_rng(0)
    times = seconds or [k / fps for k in range(frames)]
    with av.open(str(path), "w", options=container) as file:
        stream = file.add_stream(codec, rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for k, time in enumerate(times):
            grey = np.full((*size, 3), 10 * k % 250, dtype=np.uint8)
            if noise:  # bytes enough for a cut or a blot to hit frames
                grey[: size[0] // 2] = rng.integers(0, 255, (size[0] // 2, size[1], 3))
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def video() -> Callable[..., Path]:
    return write_video
