"""A learner with LoRA sends merged matrices alone; the rollouts are then those of its policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from veripo_ray import config
from veripo_ray.errors import CheckpointError
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.sampler import Sampler
from veripo_ray.weights import Snapshot, to_array

LORA = config.Lora(rank=4, alpha=8, targets=("q_proj", "down_proj", "up_proj"))


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def checkpoint(request, tiny_checkpoint: Path, qwen3_checkpoint: Path) -> Path:
    return {"qwen2_5_vl": tiny_checkpoint, "qwen3_vl": qwen3_checkpoint}[request.param]


@pytest.fixture(scope="module")
def sampler(checkpoint: Path) -> Iterator[Sampler]:
    cfg = config.Rollout(dtype="float32", max_model_len=256, max_num_seqs=16)
    made = Sampler(checkpoint, cfg, device="cpu", seed=0, lora=LORA)
    yield made
    made.close()


@pytest.fixture
def policy(policy: QwenVL) -> QwenVL:
    """With adapters that have learned something."""
    policy.add_adapters(LORA)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.normal_(std=0.1)
    return policy


def merged(policy: QwenVL) -> Snapshot:
    return {name: to_array(weight.value()) for name, weight in policy.published().items()}


def test_after_an_update_the_rollouts_are_those_of_the_adapters(
    sampler, policy, media, request_of, gap
):
    request = request_of("q", [media["video"]], seed=1, words=60)
    sampling = {"n": 4, "temperature": 1.0, "max_tokens": 24, "seed": 0}
    list(sampler.sample([request], **sampling))
    for version in (1, 2):
        sampler.load_weights(version, merged(policy))
        (group,) = sampler.sample([request], **sampling)
        assert gap(group, request) <= 1e-5
        with torch.no_grad():
            next(iter(policy.trainable().values())).mul_(2)


def test_only_what_learns_is_taken_and_all_of_it(sampler, policy):
    weights = merged(policy)
    names = {name.split(".", 2)[-1] for name in weights}
    assert not any("o_proj" in name or "norm" in name for name in names)
    last = next(reversed(weights))
    with pytest.raises(CheckpointError, match="is missing"):
        sampler.load_weights(3, {n: w for n, w in weights.items() if n != last})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is unknown"):
        sampler.load_weights(3, weights | {"lm_head.weight": np.zeros((2, 2), np.float32)})
    assert sampler.version == 2
