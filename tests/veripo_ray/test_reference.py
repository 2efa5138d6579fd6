"""The reference scores pairs with the weights it was given, as often as it is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from veripo_ray import config
from veripo_ray.errors import CheckpointError, VeripoError
from veripo_ray.policy.grouped import Packed, response_logprobs
from veripo_ray.policy.media import Features
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.records import Family, Kind, Pair, Question, Response, Verdict
from veripo_ray.reference import ReferencePolicy
from veripo_ray.weights import Manifest, buckets, to_array

CFG = config.Learner(dtype="float32", micro_batch_tokens=60)


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> ReferencePolicy:
    return ReferencePolicy(tiny_checkpoint, CFG)


@pytest.fixture(scope="module")
def pairs(reference) -> tuple[list[Pair], dict[str, tuple[Features, ...]]]:
    spec, rng = reference.policy.spec, np.random.default_rng(0)
    usable = sorted(set(range(spec.vocab_size)) - set(spec.banned_ids))
    rows, media = [], {}
    for number in range(3):
        values = rng.standard_normal((4, spec.hidden_size)).astype(np.float32)
        media[f"p{number}"] = (Features("video", values, (2, 4, 2), 1.0),)
        prompt = [spec.vision_start, *[spec.video_pad] * 4, spec.vision_end, *rng.choice(usable, 3)]
        sides = (
            Response(text="x", token_ids=rng.choice(usable, n), verdict=Verdict(checks=()))
            for n in (4, 6 + number)
        )
        rows.append(
            Pair(
                id=f"p{number}",
                group_id="g",
                question=Question(id="q", text="?", kind=Kind.NUMERIC, gold="1"),
                prompt_ids=np.array(prompt, np.int32),
                family=Family.ACCURACY,
                chosen=next(sides),
                rejected=next(sides),
                explanation="one is right",
            )
        )
    return rows, media


def expected_sums(policy: QwenVL, pairs, media) -> list[list[float]]:
    packed = [
        Packed(p.prompt_ids, media[p.id], (p.chosen.token_ids, p.rejected.token_ids)) for p in pairs
    ]
    with torch.no_grad():
        return [[float(s.sum()) for s in pair] for pair in response_logprobs(policy, packed)]


def sums(pairs) -> list[list[float]]:
    return [[p.chosen.reference_logprob, p.rejected.reference_logprob] for p in pairs]


def test_both_sides_get_the_sum_of_their_token_logprobs(reference, pairs):
    rows, media = pairs
    scored = reference.attach(rows, media)
    np.testing.assert_allclose(
        sums(scored), expected_sums(reference.policy, rows, media), rtol=1e-5
    )
    assert [pair.id for pair in scored] == [pair.id for pair in rows]


def test_attaching_twice_changes_nothing(reference, pairs):
    rows, media = pairs
    once = reference.attach(rows, media)
    assert reference.attach(once, media) == once


def test_new_weights_give_the_scores_of_the_new_policy(tiny_checkpoint, pairs):
    rows, media = pairs
    taught = QwenVL.load(tiny_checkpoint, dtype=torch.float32, tower=False)
    with torch.no_grad():
        for weight in taught.trainable().values():
            weight.mul_(1.1)
    reference = ReferencePolicy(tiny_checkpoint, CFG)
    before = sums(reference.attach(rows, media))
    reference.load_weights(4, {name: to_array(w) for name, w in taught.trainable().items()})
    after = sums(reference.attach(rows, media))
    np.testing.assert_allclose(after, expected_sums(taught, rows, media), rtol=1e-5)
    assert not np.allclose(before, after)
    assert reference.version == 4


def test_weights_of_another_model_are_refused_and_the_version_stays(reference):
    with pytest.raises(CheckpointError, match="does not fit the policy"):
        reference.load_weights(9, {"other": np.zeros(1, np.float32)})
    assert reference.version == 0


def test_a_reference_in_the_middle_of_an_update_scores_nothing(reference, pairs):
    rows, media = pairs
    weights = {name: to_array(w) for name, w in reference.policy.trainable().items()}
    first, *others = buckets(weights.items(), 100_000)
    assert others
    reference.begin_update(Manifest.of(4, weights))
    reference.take(first)
    with pytest.raises(VeripoError, match="update after version 0 failed"):
        reference.attach(rows, media)
    with pytest.raises(VeripoError, match="ended without"):
        reference.finish_update()
    reference.load_weights(4, weights)
    assert reference.version == 4
    reference.attach(rows, media)
