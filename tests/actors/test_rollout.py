"""A rollout worker in its own process streams groups and takes weights in buckets.

Its checkpoint ties the output head to the embeddings, as the smaller Qwen2.5-VL do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.dealing import Dealt
from actors.rollout import RolloutWorker
from veripo_ray import config
from veripo_ray.errors import DataError
from veripo_ray.policy.grouped import Packed, response_logprobs
from veripo_ray.policy.media import Features
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.sampler import Sampled
from veripo_ray.tinyworld.checkpoint import (
    build_config,
    build_model,
    build_processor,
    build_tokenizer,
)
from veripo_ray.weights import Manifest, buckets, to_array

SAMPLING = {"n": 2, "temperature": 1.0, "max_tokens": 12}
CFG = config.Rollout(dtype="float32", max_model_len=128, max_num_seqs=8)


@pytest.fixture(scope="module")
def tied_checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tied"
    tokenizer = build_tokenizer()
    build_processor(tokenizer).save_pretrained(folder)
    settings = build_config(tokenizer)
    settings.tie_word_embeddings = settings.text_config.tie_word_embeddings = True
    build_model(settings, seed=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(tied_checkpoint) -> QwenVL:
    return QwenVL.load(tied_checkpoint, dtype=torch.float32, tower=False)


@pytest.fixture(scope="module")
def worker(ray_session, tied_checkpoint) -> Iterator[Any]:
    actor = ray.remote(RolloutWorker).options(num_cpus=1)
    handle = actor.remote(str(tied_checkpoint), CFG, device="cpu", seed=0, version=3)
    assert ray.get(handle.ping.remote(), timeout=120) == 3
    yield handle
    ray.kill(handle)


def questions(policy: QwenVL, count: int) -> list[Dealt]:
    """Ids, prompts and references to features of this many questions about random videos."""
    spec, rng = policy.spec, np.random.default_rng(0)
    media = [spec.vision_start, spec.video_pad, spec.vision_end]
    prompts = [np.array([*media, *rng.integers(20, 40, 9)], np.int32) for _ in range(count)]
    values = rng.standard_normal((count, 4, spec.hidden_size), np.float32)
    features = [(Features("video", item, (2, 2, 4), 0.5),) for item in values]
    both = zip(prompts, features, strict=True)
    return [(f"q{i}", prompt, (ray.put(item),)) for i, (prompt, item) in enumerate(both)]


def stream(worker: Any, share: list[Dealt], *dealer: Any) -> Iterator[Sampled]:
    sample = worker.sample.options(num_returns="streaming")
    references = sample.remote(share, *dealer, **SAMPLING, seed=1)
    return (group for reference in references for group in ray.get(reference, timeout=60))


def gap(policy: QwenVL, group: Sampled, features: tuple[Features, ...]) -> float:
    packed = Packed(group.prompt_ids, features, tuple(r.token_ids for r in group.rollouts))
    with torch.no_grad():
        (scores,) = response_logprobs(policy, [packed])
    pairs = zip(scores, group.rollouts, strict=True)
    return max(float(np.abs(ours.numpy() - rollout.logprobs).max()) for ours, rollout in pairs)


def test_groups_stream_out_and_weights_come_in_buckets(worker, policy):
    asked = questions(policy, 8)
    references = {id_: reference for id_, _, (reference,) in asked}
    for version in (3, 4, 5):
        groups = list(stream(worker, asked))
        assert sorted(group.id for group in groups) == sorted(references)
        for group in groups:
            assert {rollout.policy_version for rollout in group.rollouts} == {version}
            assert gap(policy, group, ray.get(references[group.id])) <= 1e-5
        with torch.no_grad():
            for weight in policy.trainable().values():
                weight.add_(torch.randn_like(weight), alpha=0.05)
        weights = {name: to_array(weight) for name, weight in policy.trainable().items()}
        worker.begin_update.remote(Manifest.of(version + 1, weights))
        for bucket in buckets(weights.items(), 100_000):
            worker.take.remote(ray.put(bucket))
        assert ray.get(worker.finish_update.remote(), timeout=60) == version + 1
    assert ray.get(worker.version.remote(), timeout=60) == 6


def test_a_question_that_cannot_be_asked_is_named_at_the_caller(worker, policy):
    [(id_, prompt, _)] = questions(policy, 1)
    wide = Features("video", np.zeros((4, policy.spec.hidden_size + 1), np.float32), (2, 2, 4), 1.0)
    with pytest.raises(DataError, match="'q0': video features of shape"):
        list(stream(worker, [(id_, prompt, (ray.put((wide,)),))]))
    assert len(list(stream(worker, questions(policy, 2)))) == 2


def test_a_worker_tells_what_it_has_done(worker, policy):
    before = ray.get(worker.stats.remote(), timeout=60)
    groups = list(stream(worker, questions(policy, 3)))
    after = ray.get(worker.stats.remote(), timeout=60)
    tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    assert (after["groups"] - before["groups"], after["tokens"] - before["tokens"]) == (3, tokens)
