"""What was stored is what was made, to the bit; a tower in bfloat16 takes half the room."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from veripo_ray.features.cache import DiskCache
from veripo_ray.features.stored import pack_features, pack_film, unpack_features, unpack_film
from veripo_ray.policy.media import Features
from veripo_ray.video.decode import Clip


def through_disk(cache: DiskCache, stored):
    cache.put("ab" * 20, *stored)
    return cache.get("ab" * 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_come_back_whole(tmp_path, dtype: torch.dtype) -> None:
    values = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    values[0, :3] = torch.tensor([0.0, -0.0, float("inf")])
    values = values.to(dtype).float().numpy()
    made = Features("video", values, (8, 2, 4), 2 / 3, tuple(k + 0.3 for k in range(8)))
    cache = DiskCache(tmp_path, 1 << 20)
    stored = pack_features(made)
    assert stored[1].nbytes == 16 * 64 * dtype.itemsize
    found = unpack_features(through_disk(cache, stored))
    assert found.values.dtype == np.float32
    assert found.values.tobytes() == values.tobytes()
    for name in ("modality", "grid_thw", "seconds_per_grid", "timestamps"):
        assert getattr(found, name) == getattr(made, name)


def test_an_image_has_no_times(tmp_path) -> None:
    made = Features("image", np.ones((2, 64), np.float32), (1, 2, 4), 0.0)
    found = unpack_features(through_disk(DiskCache(tmp_path, 1 << 20), pack_features(made)))
    assert (found.modality, found.seconds_per_grid, found.timestamps) == ("image", 0.0, ())


def test_a_film_comes_back_whole(tmp_path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 28, 56, 3), np.uint8)
    film = Clip(frames[::-1], np.array([0.1, 1 / 3, 2.5, 9.0]), 1.7)
    found = unpack_film(through_disk(DiskCache(tmp_path, 1 << 20), pack_film(film)))
    assert np.array_equal(found.frames, film.frames)
    assert np.array_equal(found.seconds, film.seconds)
    assert found.fps == 1.7
