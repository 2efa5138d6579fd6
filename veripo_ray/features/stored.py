"""Features and films as arrays with meta data, which is what a cache keeps."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from veripo_ray.policy.media import Features
from veripo_ray.video.decode import Clip

Stored = tuple[dict[str, Any], np.ndarray]
_ABOUT = tuple(field.name for field in fields(Features) if field.name != "values")


def pack_features(features: Features) -> Stored:
    """Values that came from a tower in bfloat16 take half the room, and lose nothing."""
    about = {name: getattr(features, name) for name in _ABOUT}
    halves = np.ascontiguousarray(features.values).view(np.uint16)  # low, high, low, high, ...
    if halves[:, ::2].any():
        return about, np.ascontiguousarray(features.values)
    return about, np.ascontiguousarray(halves[:, 1::2])


def unpack_features(stored: Stored) -> Features:
    about, array = stored
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in about.items()
    }
    return Features(values=array, **given)


def pack_film(film: Clip) -> Stored:
    return {"seconds": film.seconds.tolist(), "fps": film.fps}, np.ascontiguousarray(film.frames)


def unpack_film(stored: Stored) -> Clip:
    about, frames = stored
    return Clip(frames, np.asarray(about["seconds"], np.float64), about["fps"])
