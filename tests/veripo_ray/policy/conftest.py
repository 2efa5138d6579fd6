"""A tiny real policy, and groups of random tokens with real features of random frames."""

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


@pytest.fixture(scope="session")
def spec(tiny_checkpoint: Path) -> Spec:
    return read_spec(tiny_checkpoint)


@pytest.fixture(scope="session")
def tokenizer(tiny_checkpoint: Path):
    return load_tokenizer(tiny_checkpoint)


@pytest.fixture(scope="session")
def tower(tiny_checkpoint: Path) -> Tower:
    return Tower.load(tiny_checkpoint, "cpu", torch.float32)


@pytest.fixture
def policy(tiny_checkpoint: Path) -> QwenVL:
    """The language model alone, float32, as a learner with a frozen tower holds it."""
    return QwenVL.load(tiny_checkpoint, dtype=torch.float32, tower=False)


def make_clip(frames: int, height: int, width: int, fps: float = 2.0, seed: int = 0) -> Clip:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)
    return Clip(frames=pixels, seconds=np.arange(frames) / fps, fps=fps)


@pytest.fixture(scope="session")
def clip_of() -> Callable[..., Clip]:
    return make_clip


@pytest.fixture(scope="session")
def video(tower: Tower) -> Features:
    return tower.encode_clip(make_clip(8, 28, 56))


@pytest.fixture(scope="session")
def slow_video(tower: Tower) -> Features:
    """A longer, taller clip at an uneven frame rate: temporal positions are truncated."""
    return tower.encode_clip(make_clip(6, 84, 28, fps=0.7, seed=1))


@pytest.fixture(scope="session")
def image(tower: Tower) -> Features:
    return tower.encode_image(make_clip(1, 56, 84, seed=2).frames[0])


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
