"""Small groups and pairs with video, image and text, and learners of one rank to train on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from veripo_ray import config
from veripo_ray.learner import Learner, TrainGroup, TrainPair
from veripo_ray.policy.media import Features, Frames, Media, Spec
from veripo_ray.policy.qwen_vl import read_spec


@dataclass(frozen=True)
class Batch:
    """Examples of both kinds, and the media of each under its id."""

    groups: list[TrainGroup]
    pairs: list[TrainPair]
    features: dict[str, tuple[Media, ...]]


def make_batch(spec: Spec, *, count: int = 5, seed: int = 0, frames: bool = False) -> Batch:
    """`count` groups of three uneven responses (every fourth without media) and as many pairs.

    frames: random frames instead of random features."""
    rng = np.random.default_rng(seed)
    usable = sorted(set(range(spec.vocab_size)) - set(spec.banned_ids))
    groups, pairs, features = [], [], {}
    for number in range(count):
        media, prompt = _media(spec, number, rng, frames), rng.choice(usable, 4).astype(np.int32)
        for item in media:
            pad = spec.video_pad if item.modality == "video" else spec.image_pad
            blocks = item.grid_thw[0] if spec.tells_time else 1
            block = [spec.vision_start, *[pad] * (item.rows // blocks), spec.vision_end]
            prompt = np.array([*block * blocks, *prompt], np.int32)
        responses = [rng.choice(usable, n).astype(np.int32) for n in (3, 9 + number, 5)]
        old = [-rng.uniform(2, 5, len(r)).astype(np.float32) for r in responses]
        advantages = rng.standard_normal(3).astype(np.float32)
        groups.append(TrainGroup(f"g{number}", prompt, responses, old, advantages))
        pairs.append(TrainPair(f"p{number}", prompt, responses[0], responses[1], -9.0, -30.0))
        features[f"g{number}"] = features[f"p{number}"] = media
    return Batch(groups, pairs, features)


def _media(spec: Spec, number: int, rng: np.random.Generator, frames: bool) -> tuple[Media, ...]:
    if number % 4 == 3:
        return ()
    kind, grid = ("image", (1, 4, 4)) if number % 4 == 2 else ("video", (2, 4, 2))
    if frames:
        t, h, w = 1 if kind == "image" else 2 * grid[0], *(spec.patch * side for side in grid[1:])
        pixels = rng.integers(0, 256, (t, h, w, 3), np.uint8)
        return (Frames(kind, pixels, grid, 1.0 if kind == "video" else 0.0, spec.rows(grid)),)
    values = rng.standard_normal((spec.rows(grid), spec.feature_size)).astype(np.float32)
    return (Features(kind, values, grid, 1.0 if kind == "video" else 0.0),)


@pytest.fixture(scope="session")
def spec(tiny_checkpoint: Path) -> Spec:
    return read_spec(tiny_checkpoint)


@pytest.fixture(scope="session")
def batch(spec: Spec) -> Batch:
    return make_batch(spec)


@pytest.fixture(scope="session")
def batch_of_frames(spec: Spec) -> Batch:
    return make_batch(spec, frames=True)


@pytest.fixture(scope="session")
def qwen3_batch(qwen3_checkpoint: Path) -> Batch:
    """Of frames, which the tower makes into features with deepstack levels."""
    return make_batch(read_spec(qwen3_checkpoint), frames=True)


@pytest.fixture(scope="session")
def learner(tiny_checkpoint: Path) -> Callable[..., Learner]:
    """`learner(zero_stage=2, ...)`: a fresh learner of one rank on the tiny checkpoint."""

    def build(**settings: object) -> Learner:
        cfg = config.Learner(**{"dtype": "float32", **settings})
        return Learner(tiny_checkpoint, cfg)

    return build
