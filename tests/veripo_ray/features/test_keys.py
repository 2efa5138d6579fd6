"""Features are found again exactly when they would be made again alike."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from veripo_ray import config
from veripo_ray.features import keys
from veripo_ray.features.cache import DiskCache
from veripo_ray.features.keys import Keys, content_digest
from veripo_ray.policy.tower import Tower

VIDEO = config.Video()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"some frames")
    return path


def test_a_copy_elsewhere_has_the_same_key_and_other_bytes_another(
    file: Path, tmp_path: Path
) -> None:
    named = Keys(VIDEO, "tower")
    copy = shutil.copy(file, tmp_path / "copy.mp4")
    assert named.of("video", copy) == named.of("video", file)
    copy.write_bytes(b"other frame")
    assert named.of("video", copy) != named.of("video", file)
    assert named.of("image", file) != named.of("video", file)


def test_every_sampling_setting_and_the_tower_count_and_the_time_limit_does_not(
    file: Path,
) -> None:
    usual = Keys(VIDEO, "tower").of("video", file)
    changes = {"fps": 1.0, "max_frames": 64, "min_pixels": 784, "max_pixels": 100_352}
    changed = {
        Keys(VIDEO.model_copy(update={name: value}), "tower").of("video", file)
        for name, value in changes.items()
    }
    assert len(changed | {usual, Keys(VIDEO, "other").of("video", file)}) == 6
    patient = VIDEO.model_copy(update={"decode_timeout_s": 5.0})
    assert Keys(patient, "tower").of("video", file) == usual
    assert set(config.Video.model_fields) == {*changes, "decode_timeout_s"}, "a setting is new"


def test_an_image_does_not_depend_on_how_videos_are_sampled_in_time(file: Path) -> None:
    slower = VIDEO.model_copy(update={"fps": 1.0, "max_frames": 64})
    assert Keys(slower, "tower").of("image", file) == Keys(VIDEO, "tower").of("image", file)


def test_another_release_of_what_decodes_or_computes_counts(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Keys(VIDEO, "tower").of("video", file)
    monkeypatch.setattr(keys, "version", lambda _: "99")
    assert Keys(VIDEO, "tower").of("video", file) != usual


def _towers(folder: Path) -> str:
    return Tower.load(folder, "cpu", torch.float32).fingerprint()


def test_a_towers_fingerprint_is_of_its_weights_settings_and_precision_alone(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    usual = _towers(tiny_checkpoint)
    moved = Path(shutil.copytree(tiny_checkpoint, tmp_path / "moved"))
    assert _towers(moved) == usual
    assert Tower.load(moved, "cpu", torch.bfloat16).fingerprint() != usual
    weights = load_file(moved / "model.safetensors")
    for part, same in (("model.layers.0.mlp.up_proj.weight", True), ("visual.", False)):
        name = next(name for name in weights if name.startswith(part))
        weights[name].view(-1)[0] += 1.0
        save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
        assert (_towers(moved) == usual) is same


def test_other_pixel_statistics_are_another_tower(tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    path = other / "processor_config.json"
    path.write_text(path.read_text().replace("0.48145466", "0.5"))
    assert path.read_text() != (tiny_checkpoint / path.name).read_text()
    assert _towers(other) != _towers(tiny_checkpoint)


class _Reads:
    """Counts how often a file's bytes are hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self._hash = 0, keys._file_digest
        monkeypatch.setattr(keys, "_file_digest", self)

    def __call__(self, path: Path) -> str:
        self.count += 1
        return self._hash(path)


def test_a_large_file_is_hashed_once_and_again_when_its_stamp_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "large.mp4", DiskCache(tmp_path / "cache", 1 << 30)
    path.write_bytes(np.random.default_rng(0).bytes(keys.HASHED_ALWAYS_BYTES))
    os.utime(path, ns=(0, 10**18))
    reads = _Reads(monkeypatch)
    first = content_digest(path, cache)
    assert content_digest(path, DiskCache(tmp_path / "cache", 1 << 30)) == first
    assert reads.count == 1
    os.utime(path, ns=(0, 10**18 + 1))
    assert content_digest(path, cache) == first
    assert reads.count == 2


def test_a_file_that_has_just_changed_is_not_taken_at_its_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its modification time could be the same after the next change."""
    path, cache = tmp_path / "large.mp4", DiskCache(tmp_path / "cache", 1 << 30)
    path.write_bytes(bytes(keys.HASHED_ALWAYS_BYTES))
    reads = _Reads(monkeypatch)
    assert content_digest(path, cache) == content_digest(path, cache)
    assert reads.count == 2


def test_a_small_file_is_hashed_every_time(file: Path, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 1 << 30)
    os.utime(file, ns=(0, 10**18))
    before = content_digest(file, cache)
    file.write_bytes(b"other frame")
    os.utime(file, ns=(0, 10**18))
    assert content_digest(file, cache) != before
