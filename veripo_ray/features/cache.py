"""A bounded folder of arrays that several processes share, one file an array, found by key.

A file gets its name when it is whole, so readers see all of it or nothing, and two writers of one
key write the same thing one after the other. It carries a digest of itself: what a power cut tore
or a disk changed is noticed, dropped and said in the log, never used. (That is why nothing waits
for fsync.) A file's modification time is when it was last used; the longest unused go first.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from veripo_ray.codec import load_plain
from veripo_ray.errors import ConfigError, DataError

log = logging.getLogger(__name__)
_MAGIC = b"veripo\x00\x01"  # the last byte is the version of this layout
# magic, digest of the rest, bytes of the array, bytes of what describes it; then these two
_HEAD = struct.Struct("<8s16sQQ")
_SUFFIX, _WRITING = ".array", ".writing"
_ABANDONED_S = 3600.0  # a file still being written after an hour is a dead writer's
_SLACK = 0.1  # making room frees this share more than needed, so that it is seldom done
_SPARE_BYTES = 1 << 30  # of the disk, which the cache leaves free
_DTYPES = ("float32", "uint16", "uint8")


class DiskCache:
    """Arrays under keys. Safe between threads, processes and machines that share the folder; each
    holds its own view of how full it is, and looks again after every tenth of the bound."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Raises ConfigError when the folder cannot be written."""
        self.folder, self.max_bytes = folder, max_bytes
        self.problem = ""  # why nothing is written any more
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ConfigError(
                f"features.cache_dir = {folder} cannot be written: {error.strerror}",
                fix="name another folder, or do without: features.cache_gb=0",
            ) from error
        self._unseen, self._used = 0, 0
        self._used = self._sweep()

    def get(self, key: str) -> tuple[dict[str, Any], np.ndarray] | None:
        """The meta data and the array of a key; None when it is not there, or is damaged."""
        path = self._path(key)
        try:
            found = _parsed(np.fromfile(path, np.uint8), key)
        except FileNotFoundError:
            return None
        except (OSError, DataError) as error:
            log.warning("%s is dropped from the cache and will be made again: %s", path, error)
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):  # dropped meanwhile, or another user's
            os.utime(path)
        return found

    def put(self, key: str, meta: Mapping[str, Any], array: np.ndarray) -> None:
        """Keep an array (float32, uint16 or uint8, C-contiguous). When that fails, for want of room
        or a right, the log says why, and the cache goes on without writing."""
        if self.problem:
            return
        about = msgpack.packb(
            {"key": key, "dtype": array.dtype.name, "shape": array.shape, "meta": dict(meta)}
        )
        size = _HEAD.size + array.nbytes + len(about)
        try:
            if self._make_room(size):
                self._write(self._path(key), array, about)
            else:
                log.warning("%s has no room for an array of %d bytes", self.folder, size)
        except OSError as error:
            self.problem = f"{self.folder}: {error.strerror or error}"
            log.warning("nothing more is written to the cache in %s", self.problem)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    @staticmethod
    def _write(path: Path, array: np.ndarray, about: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        body = array.reshape(-1).view(np.uint8).data
        head = _HEAD.pack(_MAGIC, _digest(body, about), array.nbytes, len(about))
        descriptor, name = tempfile.mkstemp(suffix=_WRITING, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines((head, body, about))
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _make_room(self, size: int) -> bool:
        """Drop what was used longest ago until `size` more bytes fit; whether they do."""
        with self._lock:
            if self._used + size > self.max_bytes or self._unseen > _SLACK * self.max_bytes:
                self._used, self._unseen = self._sweep(size), 0
            if fits := self._used + size <= self._limit():
                self._used += size
                self._unseen += size
            return fits

    def _limit(self) -> int:
        """Bytes that the cache may fill: its bound, or what the disk has room for."""
        free = shutil.disk_usage(self.folder).free
        return min(self.max_bytes, self._used + free - _SPARE_BYTES)

    def _sweep(self, wanted: int = 0) -> int:
        """Look at all the files and keep the bound; the bytes that are left."""
        files = sorted(self._files())
        self._used = used = sum(size for _, size, _ in files)
        limit = self._limit() - wanted
        target = limit if used <= limit else limit - int(_SLACK * self.max_bytes)
        for _, size, path in files:
            if used <= target:
                break
            with suppress(OSError):  # another process was faster
                path.unlink()
            used -= size
        return used

    def _files(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of each array; what dead writers left behind is deleted."""
        found = []
        for path in self.folder.glob("??/*"):
            with suppress(OSError):
                stat = path.stat()
                if path.suffix == _SUFFIX:
                    found.append((stat.st_mtime, stat.st_size, path))
                elif path.suffix == _WRITING and time.time() - stat.st_mtime > _ABANDONED_S:
                    path.unlink()
        return found


def _parsed(raw: np.ndarray, key: str) -> tuple[dict[str, Any], np.ndarray]:
    """Check a file's bytes [n] uint8. Raises DataError saying what is wrong with them.

    They were read, not mapped: another machine may delete the file, and a mapping would then end
    the process with SIGBUS.
    """
    if len(raw) < _HEAD.size:
        raise DataError(f"it has only {len(raw)} bytes")
    magic, digest, array_bytes, about_bytes = _HEAD.unpack_from(raw.data)
    if magic != _MAGIC:
        raise DataError("it is not an array of this version")
    if len(raw) != _HEAD.size + array_bytes + about_bytes:
        raise DataError(f"it has {len(raw)} bytes, not as many as its header promises")
    body, about = np.split(raw[_HEAD.size :], [array_bytes])
    if _digest(body.data, about.data) != digest:
        raise DataError("its content is not what was written")
    entry = load_plain(about.data)
    if entry["key"] != key or entry["dtype"] not in _DTYPES:
        raise DataError("it belongs under another name")
    return entry["meta"], body.view(entry["dtype"]).reshape(entry["shape"])


def _digest(body: memoryview, about: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(body, digest_size=16)
    digest.update(about)
    return digest.digest()


def default_folder() -> Path:
    """Where caches lie: $XDG_CACHE_HOME/veripo-ray/features, by default in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "veripo-ray" / "features"
