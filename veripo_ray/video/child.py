"""The process in which decord runs: `python -m veripo_ray.video.child SOCKET_FD`.

decord can loop for ever in C while it holds the interpreter's lock (dmlc/decord issues 269, 373
and 375), so a thread cannot end it; only the end of the process can. This one imports nothing
heavy, serves one request at a time and ends with its parent.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection

import decord
import numpy as np

from veripo_ray.video.sampling import frame_indices, resize, sampled_fps, target_size


def main() -> None:
    """Answer requests with (frames, seconds, fps), or with a sentence that says what is wrong."""
    parent = Connection(int(sys.argv[1]))
    parent.send("ready")
    while True:
        try:
            limit_s, arguments = parent.recv()
        except EOFError:
            return
        # The parent ends this process at the limit. Should the parent be gone by then, the alarm
        # does: with its default action the kernel needs no help from the interpreter.
        signal.setitimer(signal.ITIMER_REAL, limit_s + 10)
        parent.send(_answer(arguments))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(arguments: dict) -> tuple[np.ndarray, np.ndarray, float] | str:
    try:
        return decode(**arguments)
    except ValueError as error:
        return str(error)
    except (decord.DECORDError, RuntimeError, AssertionError, MemoryError) as error:
        if "cannot find video stream" in str(error):
            return "it has no video track"
        return f"it cannot be decoded ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    """decord's messages end in a C++ stack trace and begin with the time and a source line."""
    line = str(error).strip().split("\n")[0].rsplit(".cc:", 1)[-1]
    cause = line.lstrip("0123456789: ").partition("and `DECORD_")[0]
    return cause[:200] or type(error).__name__


def decode(
    path: str, fps: float, max_frames: int, min_pixels: int, max_pixels: int, factor: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """frames [T, H, W, 3] uint8, their seconds [T] float64, frames a second after sampling."""
    # One thread: clips are decoded side by side in processes, and decord's threads can deadlock.
    reader = decord.VideoReader(path, num_threads=1)
    seconds_N = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
    indices_T = frame_indices(seconds_N, fps, max_frames)
    frames = []
    # Frame by frame: get_batch is no faster, holds all at full size, and is what loops for ever.
    for index in indices_T:
        frame = reader[int(index)].asnumpy()
        size = target_size(frame.shape[:2], min_pixels, max_pixels, factor)
        frames.append(resize(frame, size))
    return np.stack(frames), seconds_N[indices_T], sampled_fps(seconds_N, len(indices_T), fps)


if __name__ == "__main__":
    main()
