"""What features are called on disk: a digest of all that they depend on.

That is the bytes of the file, how it is sampled and resized, the tower's weights and settings, its
precision, and the libraries that decode, resize and compute. A path is not among them: a file that
was moved, or a copy, has the same features.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from veripo_ray import config
from veripo_ray.features.cache import DiskCache
from veripo_ray.policy.media import Features, Modality

FORMAT = 1  # to be raised when features are made or stored in another way
LIBRARIES = ("decord", "pillow", "transformers")
HASHED_ALWAYS_BYTES = 32 << 20  # hashing this much takes 30 ms, less than decoding it
SETTLED_NS = 2_000_000_000  # a file changed since could be changed again within its timestamp


class Keys:
    """Names of the features that one tower makes of files under one set of sampling settings."""

    def __init__(
        self, video: config.Video, tower: str, *, contents: DiskCache | None = None
    ) -> None:
        """tower: its fingerprint; contents: where digests of large files are remembered."""
        made_by = {"format": FORMAT, "fields": [field.name for field in fields(Features)]}
        made_by |= {"tower": tower, "libraries": {name: version(name) for name in LIBRARIES}}
        sizes = {name: getattr(video, name) for name in ("min_pixels", "max_pixels")}
        times = {name: getattr(video, name) for name in ("fps", "max_frames")}
        self._settings: dict[Modality, dict[str, Any]] = {
            "video": made_by | sizes | times,
            "image": made_by | sizes,
        }
        self._contents = contents

    def of(self, modality: Modality, path: str | Path) -> str:
        """The key of a file's features. Raises OSError when the file cannot be read."""
        content = content_digest(Path(path), self._contents)
        return _digest({"modality": modality, "content": content, **self._settings[modality]})


def content_digest(path: Path, remembered: DiskCache | None = None) -> str:
    """A digest of the file's bytes, about a second a gigabyte.

    That of a large file is remembered, and trusted as long as its path, size, modification time in
    nanoseconds and inode stay as they are; smaller ones are read every time.
    """
    stat = path.stat()
    settled = time.time_ns() - stat.st_mtime_ns > SETTLED_NS
    if remembered is None or stat.st_size < HASHED_ALWAYS_BYTES or not settled:
        return _file_digest(path)
    place = os.fspath(path.absolute())
    seen = {"path": place, "size": stat.st_size, "mtime": stat.st_mtime_ns, "inode": stat.st_ino}
    key = _digest(seen)
    if found := remembered.get(key):
        return found[0]["content"]
    content = _file_digest(path)
    remembered.put(key, {"content": content}, np.empty(0, np.uint8))
    return content


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _blake2b).hexdigest()


def _digest(value: dict[str, Any]) -> str:
    return _blake2b(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _blake2b(data: bytes = b"") -> Any:
    return hashlib.blake2b(data, digest_size=20)
