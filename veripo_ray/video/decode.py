"""Clips from video files, frames from image files: whole or not at all, and within a time limit.

A file that cannot be used raises DataError with its path, what is wrong and the fix. Nothing is
padded with repeated frames, cut short without saying so, or waited for beyond the limit.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image, ImageOps

from veripo_ray.config import Video
from veripo_ray.errors import ConfigError, DataError, ResourceError
from veripo_ray.video.container import declared_size
from veripo_ray.video.sampling import TEMPORAL_PATCH, resize, target_size

START_LIMIT_S = 60.0
# FFmpeg conceals damage inside a frame, decord passes the result on, and only the log tells. Damage
# of frames that the clip does not need may go unnoticed: decord skips them where it can.
_DAMAGE = re.compile(r"error while decoding|damaged|Error at MB|illegal|Invalid NAL unit|no frame!")
_REENCODE = "fetch it again, re-encode it (ffmpeg -i IN -c:v libx264 OUT.mp4), or leave it out"


@dataclass(frozen=True, slots=True)
class Clip:
    """The sampled frames of one video.

    frames [T, H, W, 3] uint8, T even, H and W multiples of the tower's patch x merge;
    seconds [T] float64, each frame's own timestamp; fps, frames a second after sampling.
    """

    frames: np.ndarray
    seconds: np.ndarray
    fps: float


class Decoder:
    """Decodes one file at a time in a process of its own, which a stuck file costs its life.

    The process starts with the first clip (about 0.3 s) and is kept. `factor` is the tower's
    patch x merge. Safe to share between threads; not picklable; `close` ends the process.
    """

    def __init__(self, cfg: Video, *, factor: int = 28) -> None:
        if cfg.max_frames < TEMPORAL_PATCH:
            raise ConfigError(
                f"video.max_frames is {cfg.max_frames}, but the tower takes frames in pairs",
                fix=f"set it to {TEMPORAL_PATCH} or more",
            )
        if cfg.max_pixels < factor * factor:
            raise ConfigError(
                f"video.max_pixels is {cfg.max_pixels}, less than one block of {factor}x{factor}",
                fix=f"set it to {factor * factor} or more",
            )
        self.cfg = cfg
        self.factor = factor
        self._child: _Child | None = None
        self._lock = threading.Lock()

    def clip(self, path: str | Path) -> Clip:
        """The clip of one video. Raises DataError naming the file, what is wrong, and the fix."""
        path = Path(path).absolute()
        _check_file(path)
        with self._lock:
            answer = self._ask(path)
        if isinstance(answer, str):
            raise DataError(f"{path}: {answer}", fix=_REENCODE)
        return Clip(*answer)

    def _ask(self, path: Path) -> tuple[np.ndarray, np.ndarray, float] | str:
        cfg, limit = self.cfg, self.cfg.decode_timeout_s
        arguments = {
            "path": str(path),
            "fps": cfg.fps,
            "max_frames": cfg.max_frames,
            "min_pixels": cfg.min_pixels,
            "max_pixels": cfg.max_pixels,
            "factor": self.factor,
        }
        if self._child is None or not self._child.alive:
            self._child = _Child()
        try:
            answer = self._child.ask(limit, arguments)
        except TimeoutError:
            raise DataError(
                f"{path}: decoding took more than video.decode_timeout_s = {limit:g} s",
                fix=f"raise video.decode_timeout_s, or {_REENCODE}",
            ) from None
        except EOFError:
            return f"it made the decoder crash ({self._child.end()})"
        return self._with_log(answer, self._child.log())

    @staticmethod
    def _with_log(answer: tuple | str, log: list[str]) -> tuple | str:
        """Let FFmpeg's own words explain a failure, and turn concealed damage into one."""
        if isinstance(answer, str):
            undecodable = answer.startswith("it cannot be decoded")
            return f"it cannot be decoded ({log[0]})" if log and undecodable else answer
        damage = [line for line in log if _DAMAGE.search(line)]
        return f"it has damaged frames: {damage[0]}" if damage else answer

    def images(self, paths: Iterable[str | Path]) -> list[np.ndarray]:
        """One [H, W, 3] uint8 array an image file, sized by the same rule as frames."""
        return [self._image(Path(path).absolute()) for path in paths]

    def _image(self, path: Path) -> np.ndarray:
        _check_file(path)
        try:
            with Image.open(path) as image:
                frame = np.asarray(_as_rgb(image))
            limits = (self.cfg.min_pixels, self.cfg.max_pixels, self.factor)
            return resize(frame, target_size(frame.shape[:2], *limits))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            what = str(error).replace(f" {str(path)!r}", "")
            raise DataError(
                f"{path}: it is not a usable image ({what})", fix="fetch it again, or leave it out"
            ) from error

    def close(self) -> None:
        with self._lock:
            if self._child is not None:
                self._child.end()
                self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Child:
    """A running `veripo_ray.video.child`, its socket and its log.

    Not `multiprocessing`: its spawned processes import the caller's main module again, which a
    script without an `if __name__` guard or Ray's worker does not survive cheaply.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._log = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            self._process = subprocess.Popen(
                [sys.executable, "-m", "veripo_ray.video.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the run to handle
            )
        self._connection = Connection(ours.detach())
        if not self._connection.poll(START_LIMIT_S) or not self._starts():
            self.end()
            raise ResourceError(
                f"the video decoder does not start: {(self.log() or ['no reason given'])[-1]}",
                fix="run `veripo doctor`; decord 0.6.0 must be importable",
            )

    def _starts(self) -> bool:
        try:
            return self._connection.recv() == "ready"
        except EOFError:
            return False

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, limit_s: float, arguments: dict) -> tuple | str:
        """The child's answer. TimeoutError: it was killed at the limit; EOFError: it died."""
        self._log.seek(0)  # the child shares this position
        self._log.truncate()
        try:
            self._connection.send((limit_s, arguments))
            if self._connection.poll(limit_s):
                return self._connection.recv()
        except (ConnectionResetError, BrokenPipeError):
            raise EOFError from None
        self.end()
        raise TimeoutError

    def log(self) -> list[str]:
        """What FFmpeg and decord printed about the last file, without addresses."""
        self._log.seek(0)
        lines = self._log.read(65_536).decode(errors="replace").splitlines()
        words = [line for line in lines if line and "/src/video/" not in line]
        return [re.sub(r"^\[(\w+)[^\]]*\] ", r"\1: ", line) for line in words]

    def end(self) -> str:
        """Kill the process; how it had ended."""
        self._process.kill()
        self._connection.close()
        # A process that waits for a dead network drive outlives even SIGKILL: do not wait for it.
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "it cannot be killed"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _environment() -> dict[str, str]:
    """The child finds the same packages as this process does, wherever they come from."""
    folders = [folder or os.getcwd() for folder in sys.path]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(folders),
        "DECORD_EOF_RETRY_MAX": "20480",  # intact files with many delayed frames need thousands
        "OMP_NUM_THREADS": "1",
    }


def _check_file(path: Path) -> None:
    """What can be said of a file without decoding it. Raises DataError."""
    try:
        size = path.stat().st_size
        promised = declared_size(path) if size else None
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file", fix="check the path; relative ones start at data.video_root"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: it cannot be read ({error.strerror})", fix="check what it is and its owner"
        ) from None
    if size == 0:
        raise DataError(f"{path}: it is empty (0 bytes)", fix="fetch it again, or leave it out")
    if promised is not None and size < promised:
        raise DataError(
            f"{path}: it is cut short: {size:,} bytes are there, its header promises {promised:,}",
            fix="fetch it again, or leave it out",
        )


def _as_rgb(image: Image.Image) -> Image.Image:
    """Upright as the camera's EXIF says, transparency laid on white as Qwen's utilities do."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
