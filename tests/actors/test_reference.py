"""The reference actor returns the shard it was given, scored; the same bytes when asked again."""

from __future__ import annotations

import numpy as np
import pytest
import ray

from actors.reference import Reference
from veripo_ray import codec, config
from veripo_ray.policy.media import Features
from veripo_ray.policy.qwen_vl import QwenVL, read_spec
from veripo_ray.records import (
    Family,
    Group,
    Kind,
    Pair,
    Question,
    Response,
    Rollout,
    Verdict,
)
from veripo_ray.reference import ReferencePolicy
from veripo_ray.weights import Manifest, buckets, to_array

CFG = config.Learner(dtype="float32")
QUESTION = Question(id="q", text="?", kind=Kind.NUMERIC, gold="1")


@pytest.fixture(scope="module")
def actor(ray_session, tiny_checkpoint):
    handle = ray.remote(Reference).options(num_cpus=1).remote(str(tiny_checkpoint), CFG)
    yield handle
    ray.kill(handle)


@pytest.fixture(scope="module")
def tokens(tiny_checkpoint):
    spec = read_spec(tiny_checkpoint)
    usable = sorted(set(range(spec.vocab_size)) - set(spec.banned_ids))
    media = (Features("video", np.ones((4, spec.hidden_size), np.float32), (2, 4, 2), 1.0),)
    prompt = [spec.vision_start, *[spec.video_pad] * 4, spec.vision_end, *usable[:4]]
    return np.array(prompt, np.int32), np.array(usable[4:10], np.int32), media


@pytest.fixture(scope="module")
def pairs(tokens):
    prompt, response, _ = tokens
    good, bad = (
        Response(text="x", token_ids=ids, verdict=Verdict(checks=()))
        for ids in (response, response[::-1])
    )
    return [
        Pair(
            id=f"p{number}",
            group_id="g",
            question=QUESTION,
            prompt_ids=prompt,
            family=Family.ACCURACY,
            chosen=good,
            rejected=bad,
            explanation="one is right",
        )
        for number in range(3)
    ]


def test_a_shard_comes_back_scored_whatever_weights_it_was_sent_before(
    actor, pairs, tokens, tiny_checkpoint
):
    features = {pair.id: ray.put(tokens[2]) for pair in pairs}
    shard = codec.to_array(codec.pack_many(pairs))
    first, second = ray.get([actor.attach.remote(shard, features) for _ in range(2)], timeout=120)
    np.testing.assert_array_equal(first, second)
    again = ray.get(actor.attach.remote(first, features), timeout=60)
    np.testing.assert_array_equal(first, again)
    here = ReferencePolicy(tiny_checkpoint, CFG).attach(pairs, {p.id: tokens[2] for p in pairs})
    for ours, theirs in zip(codec.unpack_many(memoryview(first), Pair), here, strict=True):
        assert ours.chosen.reference_logprob == pytest.approx(theirs.chosen.reference_logprob)
        assert ours.rejected.reference_logprob == pytest.approx(theirs.rejected.reference_logprob)


def test_weights_arrive_through_the_object_store_with_their_version(actor, tokens, tiny_checkpoint):
    import torch

    prompt, response, media = tokens
    rollout = Rollout(
        text="x",
        token_ids=response,
        logprobs=np.zeros(len(response)),
        finish_reason="stop",
        policy_version=0,
    )
    group = Group(id="g", question=QUESTION, prompt_ids=prompt, rollouts=(rollout,))
    features = {"g": ray.put(media)}
    taught = QwenVL.load(tiny_checkpoint, dtype=torch.float32, tower=False)
    before = ray.get(actor.reference_logprobs.remote([group], features), timeout=120)
    with torch.no_grad():
        for weight in taught.trainable().values():
            weight.mul_(1.1)
    weights = {name: to_array(weight) for name, weight in taught.trainable().items()}
    actor.begin_update.remote(Manifest.of(3, weights))
    for bucket in buckets(weights.items(), 100_000):
        actor.take.remote(ray.put(bucket))
    assert ray.get(actor.finish_update.remote(), timeout=60) == 3
    assert ray.get(actor.ping.remote(), timeout=60) == 3
    after = ray.get(actor.reference_logprobs.remote([group], features), timeout=60)
    assert not np.allclose(before["g"][0], after["g"][0])
