"""Rollouts of Qwen3-VL: features with deepstack levels, times told in words, an update in place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from veripo_ray.errors import DataError
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.weights import to_array

EXPLORE = {"n": 4, "temperature": 1.0, "max_tokens": 24}


@pytest.fixture(scope="module")
def checkpoint(qwen3_checkpoint):
    return qwen3_checkpoint


@pytest.mark.parametrize(
    "names", [(), ("video",), ("slow",), ("image",), ("image", "video", "image"), ("video", "slow")]
)
def test_rollouts_and_learner_agree_on_every_token(sampler, media, request_of, names, gap):
    request = request_of("q", [media[name] for name in names], seed=1)
    (group,) = sampler.sample([request], **EXPLORE, seed=1)
    assert gap(group, request) <= 1e-5


def test_kinds_of_questions_agree_in_one_batch_too(sampler, media, request_of, gap):
    """The deepstack features of one request must not reach the rows of another."""
    names = ((), ("video",), ("image",), ("slow", "video"), ("image", "slow"), ())
    requests = {
        str(i): request_of(str(i), [media[name] for name in kinds], seed=i)
        for i, kinds in enumerate(names)
    }
    for group in sampler.sample(requests.values(), **EXPLORE, seed=1):
        assert gap(group, requests[group.id]) <= 1e-5


def test_deepstack_features_and_timestamps_matter(sampler, media, request_of, gap):
    """Otherwise the tests above would show nothing of them."""
    video = media["video"]
    request = request_of("q", [video], seed=1)
    (group,) = sampler.sample([request], **EXPLORE, seed=1)
    values = np.concatenate([video.values[:, :64], np.zeros_like(video.values[:, 64:])], axis=1)
    assert gap(group, replace(request, features=(replace(video, values=values),))) > 0.1
    late = tuple(seconds + 30 for seconds in video.timestamps)
    told = replace(request, features=(replace(video, timestamps=late),))
    assert not np.array_equal(sampler.check(told, 1), group.prompt_ids)


def test_features_without_deepstack_levels_are_refused(sampler, media, request_of):
    video = media["video"]
    request = request_of("q", [replace(video, values=video.values[:, :64].copy())])
    with pytest.raises(DataError, match=r"'q': video features of shape \(\d+, 64\)"):
        next(sampler.sample([request], **EXPLORE))


def test_an_update_reaches_all_that_was_sampled_before(sampler, policy, media, request_of, gap):
    """60 words and a video: longer than a block of the prefix cache, which must forget it."""
    request = request_of("q", [media["video"]], seed=1, words=60)
    generator = torch.Generator().manual_seed(0)
    for version in (1, 2):
        list(sampler.sample([request], **EXPLORE))
        with torch.no_grad():
            for weight in policy.trainable().values():
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
        weights = {name: to_array(weight) for name, weight in policy.trainable().items()}
        sampler.load_weights(version, weights)
        (group,) = sampler.sample([request], **EXPLORE)
        assert gap(group, request) <= 1e-5
        assert {rollout.policy_version for rollout in group.rollouts} == {version}


def test_special_tokens_are_not_sampled_however_likely(sampler, checkpoint, request_of, gap):
    policy = QwenVL.load(checkpoint, dtype=torch.float32, tower=False)
    banned, stops = list(sampler.spec.banned_ids), list(sampler.spec.stop_ids)
    with torch.no_grad():
        head_VH = policy.trainable()["lm_head.weight"]
        head_VH[banned] = 3 * head_VH[max(banned) + 1 :][: len(banned)]
        head_VH[stops] = 0
    sampler.load_weights(3, {name: to_array(w) for name, w in policy.trainable().items()})
    for group in sampler.sample([request_of(str(i), seed=i) for i in range(4)], **EXPLORE):
        for rollout in group.rollouts:
            assert not np.isin(rollout.token_ids, banned).any()
