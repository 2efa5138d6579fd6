"""A sampler whose tower learns sees the learner's own frames, once a group, with the weights of the
last sync: nothing that older ones saw is left in any cache.

A module of its own, because its engine has other parts than that of the other tests.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from veripo_ray import config
from veripo_ray.errors import CheckpointError, DataError
from veripo_ray.policy.media import Frames
from veripo_ray.policy.qwen_vl import QwenVL, read_spec
from veripo_ray.policy.tower import Tower
from veripo_ray.sampler import Sampler
from veripo_ray.video.decode import Clip
from veripo_ray.weights import to_array

CFG = config.Rollout(dtype="float32", max_model_len=256, max_num_seqs=16)
EXPLORE = {"n": 4, "temperature": 1.0, "max_tokens": 24}
NEAR = 5e-5  # after noise on a tower's weights rounding comes to 1.2e-5, another tower to 1e-3


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose processors would enlarge every clip and image of these tests, if they were let."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("large") / "tiny")
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    for part in ("video_processor", "image_processor"):
        settings[part]["size"] = {"shortest_edge": 200_704, "longest_edge": 401_408}
    path.write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def sampler(checkpoint: Path) -> Iterator[Sampler]:
    made = Sampler(checkpoint, CFG, device="cpu", seed=0, tower=True)
    yield made
    made.close()


@pytest.fixture
def policy(checkpoint: Path) -> QwenVL:
    """As a learner that trains the tower holds it."""
    return QwenVL.load(checkpoint, dtype=torch.float32)


@pytest.fixture(scope="module")
def frames(checkpoint: Path) -> dict[str, Frames]:
    """Clips at different rates, one of them odd, and an image, all of random pixels."""
    spec, rng = read_spec(checkpoint), np.random.default_rng(0)

    def clip(count: int, height: int, width: int, fps: float) -> Frames:
        pixels = rng.integers(0, 256, (count, height, width, 3), np.uint8)
        return Frames.of_clip(Clip(pixels, np.arange(count) / fps, fps), spec)

    image = Frames.of_image(rng.integers(0, 256, (56, 84, 3), np.uint8), spec)
    clips = {"video": clip(8, 28, 56, 2.0), "slow": clip(6, 140, 56, 0.7)}
    return clips | {"image": image, "unseen": clip(10, 56, 56, 1.0)}


def hooked(worker: Any, found: list[int]) -> Any:
    """Count the patches of every pass of the engine's tower from now on."""
    tower = worker.get_model().visual
    return tower.register_forward_hook(lambda _module, args, _output: found.append(len(args[0])))


@pytest.fixture
def patches_seen(sampler: Sampler) -> Iterator[list[int]]:
    found: list[int] = []
    [hook] = sampler._engine._vllm.collective_rpc(hooked, args=(found,))
    yield found
    hook.remove()


@pytest.mark.parametrize(
    "names", [(), ("video",), ("slow",), ("image",), ("image", "video", "slow", "image")]
)
def test_rollouts_and_learner_agree_on_every_token(sampler, frames, request_of, names, gap):
    request = request_of("q", [frames[name] for name in names], seed=1)
    (group,) = sampler.sample([request], **EXPLORE, seed=1)
    assert gap(group, request) <= 1e-5


def test_the_tower_sees_a_group_once_however_many_rollouts(
    sampler, frames, request_of, patches_seen
):
    request = request_of("q", [frames["unseen"]], seed=2)
    for _ in range(2):  # and, as long as its weights stay, not again for another group
        list(sampler.sample([request], **EXPLORE | {"n": 8}))
    assert patches_seen == [int(np.prod(frames["unseen"].grid_thw))]


def change_tower(policy: QwenVL, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.model.model.visual.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)


def sync(sampler: Sampler, policy: QwenVL, version: int) -> None:
    weights = {name: to_array(weight) for name, weight in policy.trainable().items()}
    sampler.load_weights(version, weights)


def test_after_a_sync_the_tower_is_the_learner_s(
    sampler, policy, frames, request_of, gap, patches_seen
):
    request = request_of("q", [frames["slow"]], seed=3, words=60)
    for version in (1, 2):
        list(sampler.sample([request], **EXPLORE))
        change_tower(policy, version)
        sync(sampler, policy, version)
        patches_seen.clear()
        (group,) = sampler.sample([request], **EXPLORE)
        assert gap(group, request) <= NEAR
        assert len(patches_seen) == 1  # not from a cache, though the clip is the same


@pytest.mark.parametrize("reset", ["reset_prefix_cache", "reset_encoder_cache"])
def test_without_a_reset_of_the_cache_the_old_tower_would_go_on_speaking(
    sampler, policy, frames, request_of, gap, monkeypatch, reset
):
    request = request_of("q", [frames["slow"]], seed=5, words=60)
    sync(sampler, policy, 3)
    list(sampler.sample([request], **EXPLORE))
    change_tower(policy, 4)
    with monkeypatch.context() as patch:
        patch.setattr(sampler._engine._vllm, reset, lambda: True)
        sync(sampler, policy, 4)
    (group,) = sampler.sample([request], **EXPLORE)
    assert gap(group, request) > 1e-3
    sync(sampler, policy, 5)
    (group,) = sampler.sample([request], **EXPLORE)
    assert gap(group, request) <= NEAR


def test_weights_without_the_tower_s_are_refused(sampler, policy):
    policy.freeze_tower()
    with pytest.raises(CheckpointError, match=r"visual\..* is missing"):
        sync(sampler, policy, 6)


def test_features_are_refused_where_frames_are_wanted(sampler, checkpoint, frames, request_of):
    features = Tower.load(checkpoint, "cpu", torch.float32).encode([frames["video"]])
    with pytest.raises(DataError, match="'q': features of a video came where the sampler takes f"):
        list(sampler.sample([request_of("q", features)], **EXPLORE))
