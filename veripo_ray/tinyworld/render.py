"""Frames of a scene and the mp4 file that holds them.

A frame is 28x56 pixels: two merged patches of Qwen2.5-VL, left and right. The shape lies in one
of them; a film counter of eight cells at the foot of each shows the step.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from veripo_ray.tinyworld.scene import Scene
from veripo_ray.tinyworld.vocabulary import STEPS

HEIGHT, WIDTH = 28, 56
HALF = WIDTH // 2
FPS = 4
FRAMES_PER_STEP = 4  # a step lasts one second
STRIP = 8  # rows of the film counter: two rows of four cells
CELL_HEIGHT, CELL_WIDTH = STRIP // 2, HALF // 4

X264 = "threads=1:rc-lookahead=0:bframes=0"  # with B-frames the bytes differ from call to call

RGB = {
    "red": (222, 44, 40),
    "green": (44, 184, 60),
    "blue": (52, 84, 226),
    "yellow": (232, 212, 44),
}
SHAPES = ("disc", "square", "diamond")


def frames(scene: Scene) -> np.ndarray:
    """[STEPS, 28, 56, 3] uint8: one picture a step."""
    return np.stack([_frame(scene, step) for step in range(STEPS)])


def write_clips(paths: Sequence[Path], scenes: Sequence[Scene]) -> None:
    """`write_mp4` of each, side by side: the encoder works outside Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(write_mp4, paths, scenes):
            pass


def write_mp4(path: Path, scene: Scene) -> None:
    """H.264 at 4 frames a second, 8 seconds; the same bytes for the same scene."""
    import av

    options = {"crf": "24", "preset": "veryfast", "x264-params": X264}
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in np.repeat(frames(scene), FRAMES_PER_STEP, axis=0):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def _frame(scene: Scene, step: int) -> np.ndarray:
    picture = np.full((HEIGHT, WIDTH, 3), scene.shade, np.uint8)
    left = HALF * (scene.sides[step] == "right")
    field = picture[: HEIGHT - STRIP, left : left + HALF]
    field[_mask(scene)] = RGB[scene.colours[step]]
    _draw_counter(picture[HEIGHT - STRIP :], step)
    return picture


def _mask(scene: Scene) -> np.ndarray:
    """[20, 28] bool: the pixels of the shape within its half."""
    x0, y0 = scene.centre
    y, x = np.mgrid[: HEIGHT - STRIP, :HALF]
    dx, dy = np.abs(x - x0), np.abs(y - y0)
    square, diamond = np.maximum(dx, dy) * 1.15, (dx + dy) / 1.3
    distance = {"disc": np.hypot(dx, dy), "square": square, "diamond": diamond}
    return distance[scene.shape] <= scene.radius


def _draw_counter(strip: np.ndarray, step: int) -> None:
    row, column = divmod(step, STEPS // 2)
    strip[:] = 16
    for left in (0, HALF):
        x, y = left + column * CELL_WIDTH, row * CELL_HEIGHT
        strip[y : y + CELL_HEIGHT, x : x + CELL_WIDTH] = 240
