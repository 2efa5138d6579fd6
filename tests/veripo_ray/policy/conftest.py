"""Tiny real policies of every family; groups of random tokens, real features of random frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from veripo_ray.policy.grouped import Packed
from veripo_ray.policy.media import Features, Spec
from veripo_ray.policy.prompting import expand
from veripo_ray.policy.qwen_vl import QwenVL, load_tokenizer, read_spec
from veripo_ray.policy.tower import Tower
from veripo_ray.video.decode import Clip


@pytest.fixture(scope="session", params=["qwen2_5_vl", "qwen3_vl"])
def checkpoint(request, tiny_checkpoint: Path, qwen3_checkpoint: Path) -> Path:
    """What is promised of a policy is promised of every family."""
    return {"qwen2_5_vl": tiny_checkpoint, "qwen3_vl": qwen3_checkpoint}[request.param]


@pytest.fixture(scope="session")
def spec(checkpoint: Path) -> Spec:
    return read_spec(checkpoint)


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path):
    return load_tokenizer(checkpoint)


@pytest.fixture(scope="session")
def tower(checkpoint: Path) -> Tower:
    return Tower.load(checkpoint, "cpu", torch.float32)


@pytest.fixture
def policy(checkpoint: Path) -> QwenVL:
    """The language model alone, float32, as a learner with a frozen tower holds it."""
    return QwenVL.load(checkpoint, dtype=torch.float32, tower=False)


@pytest.fixture(scope="session")
def clip_of(spec: Spec) -> Callable[..., Clip]:
    """clip_of(frames, rows, columns, fps, seed): random pixels, rows x columns merged patches."""
    side = spec.patch * spec.merge

    def make(frames: int, rows: int, columns: int, fps: float = 2.0, seed: int = 0) -> Clip:
        size = (frames, rows * side, columns * side, 3)
        pixels = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
        return Clip(frames=pixels, seconds=np.arange(frames) / fps, fps=fps)

    return make


@pytest.fixture(scope="session")
def video(tower: Tower, clip_of) -> Features:
    return tower.encode_clip(clip_of(8, 1, 2))


@pytest.fixture(scope="session")
def slow_video(tower: Tower, clip_of) -> Features:
    """A longer, taller clip at an uneven frame rate: temporal positions are truncated."""
    return tower.encode_clip(clip_of(6, 3, 1, fps=0.7, seed=1))


@pytest.fixture(scope="session")
def image(tower: Tower, clip_of) -> Features:
    return tower.encode_image(clip_of(1, 2, 3, seed=2).frames[0])


@pytest.fixture(scope="session")
def words_of(spec: Spec) -> Callable[[int, int], np.ndarray]:
    """words_of(count, seed): random ids without any special token."""
    plain = [i for i in range(spec.vocab_size) if i not in (*spec.banned_ids, *spec.stop_ids)]

    def words(count: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).choice(plain, count).astype(np.int32)

    return words


@pytest.fixture(scope="session")
def group_of(spec: Spec, tokenizer, words_of) -> Callable[..., Packed]:
    """group_of(media, response lengths, seed): a prompt with these media and random responses."""

    def group(media: Sequence[Features], lengths: Sequence[int], seed: int = 0) -> Packed:
        pads = {modality: token for token, modality in spec.placeholders.items()}
        parts = [words_of(3, seed)]
        for i, item in enumerate(media):
            item_ids = [spec.vision_start, pads[item.modality], spec.vision_end]
            parts += [np.array(item_ids, np.int32), words_of(i + 1, seed + i)]
        responses = tuple(words_of(n, 100 + seed + i) for i, n in enumerate(lengths))
        return Packed(
            expand(np.concatenate(parts), media, spec, tokenizer), tuple(media), responses
        )

    return group
