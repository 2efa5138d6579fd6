"""Two learner ranks are one learner: same losses, same weights, at every ZeRO stage."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayTaskError

from actors.learner import LearnerRank
from veripo_ray import codec, config
from veripo_ray.errors import PrecisionError, ResourceError
from veripo_ray.learner import Learner, TrainGroup, TrainPair
from veripo_ray.policy.media import Features, Frames
from veripo_ray.policy.prompting import expand
from veripo_ray.policy.qwen_vl import QwenVL, load_tokenizer, read_spec
from veripo_ray.records import Family, Kind, Pair, Question, Response, Verdict
from veripo_ray.reference import ReferencePolicy
from veripo_ray.weights import shapes_of

LR = 1e-4
NOISE = 5e-6  # four steps move a weight by 4e-4; Adam enlarges rounding where a gradient is near 0
GRPO = config.Grpo(lr=LR)
DPO = config.Dpo(lr=LR)
WAIT_S = 180  # for any answer of an actor


class Ranks:
    """Two actors. `rejoin` gives them a new learner of other settings in the same process group:
    starting actors for every test would cost ten seconds a time."""

    def __init__(self, checkpoint: Path, extensions: Path) -> None:
        self.checkpoint, self.extensions = checkpoint, extensions
        environment = {"env_vars": {"TORCH_EXTENSIONS_DIR": str(extensions)}}
        actor = ray.remote(LearnerRank).options(num_cpus=1, runtime_env=environment)
        self.handles = [
            actor.remote(str(checkpoint), settings(0), rank=rank, world_size=2) for rank in (0, 1)
        ]
        self.address = ray.get(self.handles[0].address.remote(), timeout=WAIT_S)

    def rejoin(self, cfg: config.Learner, checkpoint: Path | None = None) -> Ranks:
        folder = str(checkpoint or self.checkpoint)
        self.every("__ray_call__", lambda r: vars(r).update(cfg=cfg, checkpoint=folder))
        self.every("join", self.address)
        return self

    def every(self, method: str, *args, **kwargs) -> list:
        calls = [getattr(handle, method).remote(*args, **kwargs) for handle in self.handles]
        return ray.get(calls, timeout=WAIT_S)


def settings(stage: int, **others: object) -> config.Learner:
    return config.Learner(
        dtype="float32", ranks=2, zero_stage=stage, micro_batch_tokens=60, **others
    )


@pytest.fixture(scope="module")
def ranks(ray_session, tiny_checkpoint, tmp_path_factory):
    both = Ranks(tiny_checkpoint, tmp_path_factory.mktemp("extensions"))
    yield both
    for handle in both.handles:
        ray.kill(handle)


@pytest.fixture(scope="module")
def examples(tiny_checkpoint):
    """Five groups (so that ranks have unequal shares), a pair of each, and their features."""
    spec, rng = read_spec(tiny_checkpoint), np.random.default_rng(0)
    usable = sorted(set(range(spec.vocab_size)) - set(spec.banned_ids))
    groups, pairs, media = [], [], {}
    for number in range(5):
        values = rng.standard_normal((4, spec.hidden_size)).astype(np.float32)
        prompt = [spec.vision_start, *[spec.video_pad] * 4, spec.vision_end, *rng.choice(usable, 3)]
        ids = np.array(prompt, np.int32)
        responses = [rng.choice(usable, n).astype(np.int32) for n in (3, 20 - 4 * number)]
        old = [-rng.uniform(2, 5, len(r)).astype(np.float32) for r in responses]
        advantages = rng.standard_normal(2).astype(np.float32)
        groups.append(TrainGroup(f"g{number}", ids, responses, old, advantages))
        pairs.append(TrainPair(f"p{number}", ids, *responses, -9.0, -30.0))
        features = (Features("video", values, (2, 4, 2), 1.0),)
        media[f"g{number}"] = media[f"p{number}"] = features
    return groups, pairs, media


@pytest.fixture(scope="module")
def sent(ray_session, examples):
    """The same as references: lists of one reference, and a reference to each item's features."""
    groups, pairs, media = examples
    references = {name: ray.put(features) for name, features in media.items()}
    return [ray.put(groups)], [ray.put(pairs)], references


@pytest.fixture(scope="module")
def alone(tiny_checkpoint, examples):
    """Metrics and weights of one rank: two GRPO steps, then two of DPO."""
    groups, pairs, media = examples
    learner = Learner(tiny_checkpoint, config.Learner(dtype="float32"))
    metrics = [learner.grpo_step(groups, media, GRPO) for _ in range(2)]
    metrics += [learner.dpo_step(pairs, media, DPO) for _ in range(2)]
    return metrics, learner.weights()


def train(ranks: Ranks, sent) -> list[list[dict[str, float]]]:
    groups, pairs, features = sent
    steps = [ranks.every("grpo_step", groups, features, GRPO) for _ in range(2)]
    return steps + [ranks.every("dpo_step", pairs, features, DPO) for _ in range(2)]


def weights_of(ranks: Ranks) -> dict[str, np.ndarray]:
    """As they are sent: in buckets, of rank 0 alone."""
    first, second = ranks.every("manifest", 5)
    assert first == second
    streams = [h.weights.options(num_returns="streaming").remote(100_000) for h in ranks.handles]
    sent, none = ([ray.get(r, timeout=WAIT_S) for r in stream] for stream in streams)
    assert not none
    weights = {name: array for bucket in sent for name, array in bucket.items()}
    assert shapes_of(weights) == first.shapes
    assert [*weights] == [*first.shapes]
    return weights


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_train_like_one(stage, ranks, sent, alone):
    ranks.rejoin(settings(stage))
    steps = train(ranks, sent)
    for (first, second), expected in zip(steps, alone[0], strict=True):
        assert first == second
        for name, value in expected.items():
            assert first[name] == pytest.approx(value, rel=2e-5, abs=1e-6), name
    for name, weight in weights_of(ranks).items():
        np.testing.assert_allclose(weight, alone[1][name], atol=NOISE, rtol=0, err_msg=name)


LORA = config.Lora(rank=4, alpha=8)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_train_adapters_like_one(stage, ranks, sent, examples, tiny_checkpoint):
    groups, pairs, media = examples
    single = Learner(tiny_checkpoint, config.Learner(dtype="float32", lora=LORA))
    expected = [single.grpo_step(groups, media, GRPO) for _ in range(2)]
    expected += [single.dpo_step(pairs, media, DPO) for _ in range(2)]
    ranks.rejoin(settings(stage, lora=LORA, gradient_checkpointing=True))
    for (first, second), metrics in zip(train(ranks, sent), expected, strict=True):
        assert first == second
        assert first["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=2e-5)
    merged = single.weights()
    trained = weights_of(ranks)
    assert (
        trained.keys()
        == merged.keys()
        < QwenVL.load(tiny_checkpoint, dtype=torch.float32, tower=False).trainable().keys()
    )
    for name, weight in trained.items():
        np.testing.assert_allclose(weight, merged[name], atol=NOISE, rtol=0, err_msg=name)


@pytest.mark.parametrize("stage", [2, 3])
def test_with_lora_two_ranks_share_the_work_of_the_reference(
    stage, ranks, sent, examples, tiny_checkpoint
):
    _, pairs, media = examples
    ranks.rejoin(settings(stage, lora=LORA))
    train(ranks, sent)  # what they were before is their reference
    shard = codec.to_array(codec.pack_many([as_pair(pair) for pair in pairs]))
    answers = ranks.every("attach", shard, sent[2])
    scored = [codec.unpack_many(memoryview(answer), Pair) for answer in answers]
    assert [len(part) for part in scored] == [3, 2]
    packed = [pair.packed(media[pair.id]) for pair in pairs]
    expected = ReferencePolicy(tiny_checkpoint, config.Learner(dtype="float32")).logprobs(packed)
    by_id = {pair.id: pair for part in scored for pair in part}
    for pair, rows in zip(pairs, expected, strict=True):
        sides = (by_id[pair.id].chosen, by_id[pair.id].rejected)
        found = [side.reference_logprob for side in sides]
        assert found == pytest.approx([float(row.sum()) for row in rows], abs=1e-4)


def as_pair(pair: TrainPair) -> Pair:
    good, bad = (
        Response(text="x", token_ids=ids, verdict=Verdict(checks=()))
        for ids in (pair.chosen, pair.rejected)
    )
    question = Question(id="q", text="?", kind=Kind.NUMERIC, gold="1")
    return Pair(
        id=pair.id,
        group_id="g",
        question=question,
        prompt_ids=pair.prompt_ids,
        family=Family.ACCURACY,
        chosen=good,
        rejected=bad,
        explanation="one is right",
    )


@pytest.fixture(scope="module")
def frames(tiny_checkpoint, examples):
    """The same examples, every second one (all that rank 1 gets) without media, the others with
    frames."""
    spec, rng = read_spec(tiny_checkpoint), np.random.default_rng(1)
    groups, pairs, _ = examples
    media = {}
    for number, (group, pair) in enumerate(zip(groups, pairs, strict=True)):
        pixels = rng.integers(0, 256, (4, 56, 28, 3), np.uint8)
        seen = (Frames("video", pixels, (2, 4, 2), 1.0, spec.rows((2, 4, 2))),)
        media[group.id] = media[pair.id] = () if number % 2 else seen
    words = [replace(row, prompt_ids=row.prompt_ids[6:]) for row in (*groups, *pairs)]
    rows = [
        text if not media[row.id] else row
        for row, text in zip((*groups, *pairs), words, strict=True)
    ]
    return rows[: len(groups)], rows[len(groups) :], media


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_train_a_tower_like_one_though_only_one_of_them_has_frames(
    stage, ranks, frames, tiny_checkpoint
):
    groups, pairs, media = frames
    single = Learner(tiny_checkpoint, config.Learner(dtype="float32", train_vision=True))
    expected = [single.grpo_step(groups, media, GRPO), single.dpo_step(pairs, media, DPO)]
    ranks.rejoin(settings(stage, train_vision=True))
    references = {name: ray.put(items) for name, items in media.items()}
    steps = [
        ranks.every("grpo_step", [ray.put(groups)], references, GRPO),
        ranks.every("dpo_step", [ray.put(pairs)], references, DPO),
    ]
    for (first, second), metrics in zip(steps, expected, strict=True):
        assert first == second
        assert first["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=2e-5)
    trained, alone = weights_of(ranks), single.weights()
    start = QwenVL.load(tiny_checkpoint, dtype=torch.float32).trainable()
    for name, weight in start.items():
        moved = np.linalg.norm(alone[name] - weight.detach().numpy())
        assert moved > 0, name
        assert np.linalg.norm(trained[name] - alone[name]) <= 1e-2 * moved, (
            name
        )  # Adam enlarges rounding


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def family_checkpoint(request, tiny_checkpoint: Path, qwen3_checkpoint: Path) -> Path:
    return {"qwen2_5_vl": tiny_checkpoint, "qwen3_vl": qwen3_checkpoint}[request.param]


@pytest.fixture(scope="module")
def mixture(family_checkpoint) -> tuple[list[TrainGroup], dict[str, tuple[Features, ...]]]:
    """Groups of video, image, both and text; uneven, single and empty responses."""
    spec, rng = read_spec(family_checkpoint), np.random.default_rng(1)
    tokenizer = load_tokenizer(family_checkpoint)
    usable = sorted(set(range(spec.vocab_size)) - set(spec.banned_ids))
    kinds = {
        "video": (spec.video_pad, (2, 4, 2), 1.0, (0.5, 2.5)),
        "image": (spec.image_pad, (1, 4, 4), 0.0, ()),
    }
    cases = [("video",), ("image",), ("image", "video"), (), ("video",)]
    groups, media = [], {}
    for number, (case, lengths) in enumerate(
        zip(cases, [(7, 0, 12, 1), (5,), (3, 40), (33, 2, 9), (0, 4)], strict=True)
    ):
        prompt, items = [*rng.choice(usable, 3)], []
        for kind in case:
            pad, *place = kinds[kind]
            values = rng.standard_normal((4, spec.feature_size)).astype(np.float32)
            items.append(Features(kind, values, *place))
            prompt += [spec.vision_start, pad, spec.vision_end, *rng.choice(usable, 2)]
        responses = [rng.choice(usable, n).astype(np.int32) for n in lengths]
        old = [-rng.uniform(3.5, 4.5, n).astype(np.float32) for n in lengths]
        advantages = rng.standard_normal(len(lengths)).astype(np.float32)
        ids = expand(np.array(prompt, np.int32), items, spec, tokenizer)
        groups.append(TrainGroup(f"m{number}", ids, responses, old, advantages))
        media[f"m{number}"] = tuple(items)
    return groups, media


def one_sequence_each(group: TrainGroup) -> list[TrainGroup]:
    """The same as groups of one response, each with the whole prompt before it."""
    return [
        replace(group, responses=[response], old_logprobs=[old], advantages=advantage)
        for response, old, advantage in zip(
            group.responses, group.old_logprobs, group.advantages[:, None], strict=True
        )
    ]


# With an eps this far above every gradient, Adam's step is the gradient itself times lr / eps.
EPS, SCALE = 1e6, 1e3
PLAIN_STEP = config.Grpo(lr=EPS * SCALE)


@pytest.fixture(scope="module")
def gradients_of_separate_sequences(family_checkpoint, mixture):
    """Of one rank, sequence by sequence: initial weights and every parameter's gradient."""
    groups, media = mixture
    cfg = config.Learner(dtype="float32", grad_clip=1e9, micro_batch_tokens=1, zero_stage=0)
    learner = Learner(family_checkpoint, cfg)
    before = learner.weights()
    learner.engine._optimizer.param_groups[0].update(eps=EPS)
    rows = [row for group in groups for row in one_sequence_each(group)]
    learner.grpo_step(rows, media, PLAIN_STEP)
    after = learner.weights()
    return before, {name: (after[name] - before[name]) / SCALE for name in before}


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_on_two_ranks_too_a_shared_prompt_gives_every_gradient_of_separate_sequences(
    stage, ranks, family_checkpoint, mixture, gradients_of_separate_sequences
):
    groups, media = mixture
    before, expected = gradients_of_separate_sequences
    ranks.rejoin(settings(stage, grad_clip=1e9), family_checkpoint)
    ranks.every(
        "__ray_call__", lambda rank: rank.learner.engine._optimizer.param_groups[0].update(eps=EPS)
    )
    features = {name: ray.put(items) for name, items in media.items()}
    ranks.every("grpo_step", [ray.put(groups)], features, PLAIN_STEP)
    after = weights_of(ranks)
    assert after.keys() == expected.keys()
    for name, gradient in expected.items():
        ours = (after[name] - before[name]) / SCALE
        assert np.linalg.norm(gradient) > 0, name
        assert np.linalg.norm(ours - gradient) <= 1e-5 * np.linalg.norm(gradient), name


@pytest.mark.parametrize("stage", [0, 3])
def test_one_example_for_two_ranks_keeps_them_in_step(
    stage, ranks, examples, sent, tiny_checkpoint
):
    groups, _, media = examples
    ranks.rejoin(settings(stage))
    first, second = ranks.every("grpo_step", [ray.put(groups[:1])], sent[2], GRPO)
    single = Learner(tiny_checkpoint, config.Learner(dtype="float32"))
    expected = single.grpo_step(groups[:1], media, GRPO)
    assert first == second
    assert first["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_continue_to_the_bit(stage, ranks, sent, tmp_path):
    ranks.rejoin(settings(stage))
    train(ranks, sent)
    weights_of(ranks)  # names them version 5
    ranks.every("save", str(tmp_path / "checkpoint"))
    train(ranks, sent)
    expected = weights_of(ranks)
    ranks.rejoin(settings(stage))
    assert ranks.every("load", str(tmp_path / "checkpoint")) == [5, 5]
    train(ranks, sent)
    for name, weight in weights_of(ranks).items():
        np.testing.assert_array_equal(weight, expected[name], err_msg=name)


def test_ranks_on_disks_of_their_own_continue_from_the_uri_that_both_wrote_to(
    ranks, sent, tmp_path
):
    uri = f"file://{tmp_path}/bucket/run/checkpoints/000001-a"
    folders = [str(tmp_path / disk / "000001.1.writing") for disk in ("one", "other")]
    ranks.rejoin(settings(2))
    train(ranks, sent)
    weights_of(ranks)
    both = zip(ranks.handles, folders, strict=True)
    ray.get([rank.save.remote(folder) for rank, folder in both], timeout=WAIT_S)
    hf = [(Path(folder) / "hf").exists() for folder in folders]
    assert hf == [True, False]
    for rank, folder in zip(ranks.handles, folders, strict=True):
        ray.get(rank.upload.remote(folder, uri, keep=rank is ranks.handles[0]), timeout=WAIT_S)
    assert [Path(folder).exists() for folder in folders] == [True, False]
    train(ranks, sent)
    expected = weights_of(ranks)
    ranks.rejoin(settings(2))
    assert ranks.every("load", uri) == [5, 5]
    train(ranks, sent)
    for name, weight in weights_of(ranks).items():
        np.testing.assert_array_equal(weight, expected[name], err_msg=name)


def test_a_gap_on_one_rank_stops_both(ranks, sent, examples):
    ranks.rejoin(settings(2))
    calls = [handle.grpo_step.remote(sent[0], sent[2], GRPO, 1e-3) for handle in ranks.handles]
    named = set()
    for call in calls:
        with pytest.raises(RayTaskError) as caught:
            ray.get(call, timeout=WAIT_S)
        assert isinstance(caught.value.cause, PrecisionError)
        named.add(caught.value.cause.problem)
    assert len(named) == 1


def test_nothing_was_compiled_on_the_way(ranks):
    """DeepSpeed would build its shared-memory collectives into this folder, for over a minute."""
    ranks.rejoin(settings(0))
    assert os.listdir(ranks.extensions) == []


def test_a_rank_that_does_not_come_is_named(ray_session, tiny_checkpoint):
    lonely = (
        ray.remote(LearnerRank)
        .options(num_cpus=1)
        .remote(str(tiny_checkpoint), settings(0), rank=0, world_size=2)
    )
    try:
        address = ray.get(lonely.address.remote(), timeout=WAIT_S)
        with pytest.raises(RayTaskError) as caught:
            ray.get(lonely.join.remote(address, 1.0), timeout=WAIT_S)
        assert isinstance(caught.value.cause, ResourceError)
        assert "ranks [1] of 2" in caught.value.cause.problem
    finally:
        ray.kill(lonely)
