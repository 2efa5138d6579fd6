"""After a sync rollout workers and reference hold the learner's weights, or serve nothing; and an
error says who was missing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.learner import LearnerRank
from actors.reference import Reference
from actors.rollout import RolloutWorker
from actors.syncing import WeightSync
from veripo_ray import config
from veripo_ray.errors import CheckpointError, ResourceError, VeripoError
from veripo_ray.learner import TrainGroup
from veripo_ray.policy.folder import load_tokenizer
from veripo_ray.policy.media import Features
from veripo_ray.policy.prompting import expand
from veripo_ray.policy.qwen_vl import read_spec
from veripo_ray.records import Group, Kind, Question
from veripo_ray.sampler import Sampled
from veripo_ray.weights import Snapshot

WAIT_S = 120.0
ROLLOUT = config.Rollout(dtype="float32", max_model_len=128, max_num_seqs=8)
SYNC = WeightSync(config.Weights(bucket_mb=0.1, timeout_s=WAIT_S))
HASTY = WeightSync(config.Weights(bucket_mb=0.1, timeout_s=1.0))
CLOSE, FAR = 1e-5, 1e-3


def settings(stage: int) -> config.Learner:
    return config.Learner(dtype="float32", ranks=2, zero_stage=stage, micro_batch_tokens=60)


@pytest.fixture(scope="module")
def checkpoints(tiny_checkpoint: Path, qwen3_checkpoint: Path) -> dict[str, Path]:
    return {"qwen2_5_vl": tiny_checkpoint, "qwen3_vl": qwen3_checkpoint}


@pytest.fixture(scope="module")
def ranks(ray_session, tiny_checkpoint) -> Iterator[dict[str, Any]]:
    """Two learner ranks, by name; `learn` gives them a learner of some family and stage."""
    actor = ray.remote(LearnerRank).options(num_cpus=1)
    handles = [
        actor.remote(str(tiny_checkpoint), settings(0), rank=rank, world_size=2) for rank in (0, 1)
    ]
    yield {f"learner rank {n}": handle for n, handle in enumerate(handles)}
    for handle in handles:
        ray.kill(handle)


def every(ranks: dict[str, Any], method: str, *args: Any) -> list[Any]:
    calls = [getattr(handle, method).remote(*args) for handle in ranks.values()]
    return ray.get(calls, timeout=WAIT_S)


@pytest.fixture(scope="module")
def learn(ranks, checkpoints) -> Callable[[str, int], None]:
    """A learner of this family and ZeRO stage, one optimiser step away from the checkpoint."""
    address = ray.get(ranks["learner rank 0"].address.remote(), timeout=WAIT_S)

    def made(family: str, stage: int) -> None:
        folder, cfg = str(checkpoints[family]), settings(stage)
        every(ranks, "__ray_call__", lambda r: vars(r).update(cfg=cfg, checkpoint=folder))
        every(ranks, "join", address)
        prompt, features = asked(checkpoints[family])
        tokenizer, spec = load_tokenizer(folder), read_spec(folder)
        ids = expand(prompt, features, spec, tokenizer)
        response, old = prompt[-5:], np.full(5, -4.0, np.float32)
        groups = [
            TrainGroup(f"g{n}", ids, [response], [old], np.ones(1, np.float32)) for n in (0, 1)
        ]
        media = {group.id: ray.put(features) for group in groups}
        every(ranks, "grpo_step", [ray.put(groups)], media, config.Grpo(lr=1e-2))

    return made


def asked(checkpoint: Path) -> tuple[np.ndarray, tuple[Features, ...]]:
    """A prompt about a random video, one placeholder for it, and the video's features."""
    spec, rng = read_spec(checkpoint), np.random.default_rng(0)
    usable = sorted(set(range(spec.vocab_size)) - {*spec.banned_ids, *spec.stop_ids})
    prompt = [spec.vision_start, spec.video_pad, spec.vision_end, *rng.choice(usable, 40)]
    values = rng.standard_normal((4, spec.feature_size)).astype(np.float32)
    return np.array(prompt, np.int32), (Features("video", values, (2, 2, 4), 0.5, (0.25, 1.25)),)


@pytest.fixture(scope="module")
def workers(ray_session, checkpoints) -> Iterator[dict[str, dict[str, Any]]]:
    """A rollout worker of each family."""
    actor = ray.remote(RolloutWorker).options(num_cpus=1)
    made = {family: actor.remote(str(folder), ROLLOUT) for family, folder in checkpoints.items()}
    yield {family: {"rollout worker 0": handle} for family, handle in made.items()}
    for handle in made.values():
        ray.kill(handle)


@pytest.fixture
def reference(ray_session, tiny_checkpoint) -> Iterator[dict[str, Any]]:
    handle = ray.remote(Reference).options(num_cpus=1).remote(str(tiny_checkpoint), settings(0))
    ray.get(handle.ping.remote(), timeout=WAIT_S)
    yield {"reference": handle}
    ray.kill(handle)


def sample(worker: Any, checkpoint: Path) -> Sampled:
    prompt, features = asked(checkpoint)
    stream = worker.sample.options(num_returns="streaming").remote(
        [("q", prompt, (ray.put(features),))], n=2, temperature=1.0, max_tokens=12, seed=1
    )
    (group,) = (group for part in stream for group in ray.get(part, timeout=WAIT_S))
    return group


def as_group(sampled: Sampled) -> Group:
    question = Question(id="q", text="?", kind=Kind.NUMERIC, gold="1")
    return Group(
        id="g", question=question, prompt_ids=sampled.prompt_ids, rollouts=sampled.rollouts
    )


def gap(ranks: dict[str, Any], sampled: Sampled, checkpoint: Path) -> float:
    """The largest difference between a token's log-probability at the worker and at the learner."""
    features = {"g": ray.put(asked(checkpoint)[1])}
    scores = every(ranks, "logprobs", [as_group(sampled)], features)[0]["g"]
    both = zip(scores, sampled.rollouts, strict=True)
    return max(float(np.abs(ours - rollout.logprobs).max()) for ours, rollout in both)


def publish(sync: WeightSync, version: int, ranks: Any, holders: Any) -> None:
    asyncio.run(sync.publish(version, ranks, holders))


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_after_a_sync_rollouts_have_the_learner_s_log_probabilities(
    family, stage, ranks, learn, workers, checkpoints
):
    """The prompt is longer than a block of the prefix cache, and was sampled before the sync."""
    learn(family, stage)
    worker, checkpoint, version = workers[family], checkpoints[family], 10 + stage
    sample(worker["rollout worker 0"], checkpoint)
    publish(SYNC, version, ranks, worker)
    group = sample(worker["rollout worker 0"], checkpoint)
    assert {rollout.policy_version for rollout in group.rollouts} == {version}
    assert gap(ranks, group, checkpoint) <= CLOSE
    learn(family, stage)  # begins at the checkpoint again, and steps
    every(ranks, "grpo_step", *another_step(checkpoint))
    assert gap(ranks, group, checkpoint) > FAR  # otherwise the step above would show nothing


def another_step(checkpoint: Path) -> tuple[Any, ...]:
    prompt, features = asked(checkpoint)
    ids = expand(prompt, features, read_spec(checkpoint), load_tokenizer(checkpoint))
    old = np.full(5, -4.0, np.float32)
    groups = [TrainGroup(f"g{n}", ids, [prompt[3:8]], [old], np.ones(1)) for n in (0, 1)]
    media = {group.id: ray.put(features) for group in groups}
    return [ray.put(groups)], media, config.Grpo(lr=1e-2)


def test_the_reference_becomes_the_learner(ranks, learn, reference, tiny_checkpoint, workers):
    learn("qwen2_5_vl", 3)
    asyncio.run(SYNC.refit(20, ranks, reference))
    assert ray.get(reference["reference"].ping.remote(), timeout=WAIT_S) == 20
    features = {"g": ray.put(asked(tiny_checkpoint)[1])}
    groups = [as_group(sample(workers["qwen2_5_vl"]["rollout worker 0"], tiny_checkpoint))]
    theirs = ray.get(
        reference["reference"].reference_logprobs.remote(groups, features), timeout=WAIT_S
    )
    ours = every(ranks, "logprobs", groups, features)[0]
    for mine, its in zip(ours["g"], theirs["g"], strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-6, rtol=0)


class Damaging:
    """An actor's handle on a bad wire: of the first so many buckets some weight has a row less."""

    def __init__(self, handle: Any, buckets: int) -> None:
        self._handle, self._left, self.take = handle, buckets, self

    def remote(self, bucket: Any) -> Any:
        if self._left:
            self._left -= 1
            bucket = ray.put(damaged(ray.get(bucket)))
        return self._handle.take.remote(bucket)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def damaged(bucket: Snapshot) -> Snapshot:
    name = list(bucket)[-1]
    return bucket | {name: bucket[name][1:]}


def test_a_worker_that_fails_in_the_middle_is_refitted_before_the_sync_ends(
    ranks, learn, workers, tiny_checkpoint, caplog
):
    learn("qwen2_5_vl", 0)
    worker = workers["qwen2_5_vl"]["rollout worker 0"]
    publish(SYNC, 30, ranks, {"rollout worker 0": Damaging(worker, buckets=1)})
    assert "refitting through the object store: rollout worker 0 (node" in caplog.text
    group = sample(worker, tiny_checkpoint)
    assert {rollout.policy_version for rollout in group.rollouts} == {30}
    assert gap(ranks, group, tiny_checkpoint) <= CLOSE


def test_a_worker_that_fails_again_is_named_and_serves_nothing_until_it_is_refitted(
    ranks, learn, workers, tiny_checkpoint, reference
):
    learn("qwen2_5_vl", 3)
    worker = workers["qwen2_5_vl"]["rollout worker 0"]
    holders = {"rollout worker 0": Damaging(worker, buckets=99), **reference}
    with pytest.raises(CheckpointError, match=r"rollout worker 0 \(node .*\): weights came that"):
        publish(SYNC, 31, ranks, holders)
    assert ray.get(reference["reference"].ping.remote(), timeout=WAIT_S) == 31  # the other has its
    with pytest.raises(VeripoError, match="update after version 30 failed"):
        sample(worker, tiny_checkpoint)
    asyncio.run(SYNC.refit(32, ranks, {"rollout worker 0": worker}))
    assert gap(ranks, sample(worker, tiny_checkpoint), tiny_checkpoint) <= CLOSE


def test_other_weights_than_the_learner_s_are_refused_before_anything_changes(
    ranks, learn, workers, checkpoints
):
    learn("qwen2_5_vl", 0)
    other = workers["qwen3_vl"]["rollout worker 0"]
    before = ray.get(other.version.remote(), timeout=WAIT_S)
    with pytest.raises(CheckpointError, match=r"rollout worker 0 .*does not fit the policy"):
        publish(SYNC, 40, ranks, {"rollout worker 0": other})
    group = sample(other, checkpoints["qwen3_vl"])
    assert {rollout.policy_version for rollout in group.rollouts} == {before}


class Dying(Damaging):
    """Whose actor ends when the first bucket comes."""

    def remote(self, bucket: Any) -> Any:
        ray.kill(self._handle)
        return self._handle.take.remote(bucket)


def test_a_holder_that_dies_in_the_middle_is_named_and_the_others_get_their_weights(
    ranks, learn, workers, reference
):
    learn("qwen2_5_vl", 0)
    holders = {**workers["qwen2_5_vl"], "reference": Dying(reference["reference"], 0)}
    with pytest.raises(ResourceError, match=r"^reference \(node .*\) died, loading weights of"):
        publish(SYNC, 50, ranks, holders)
    worker = workers["qwen2_5_vl"]["rollout worker 0"]
    assert ray.get(worker.version.remote(), timeout=WAIT_S) == 50


def test_whoever_does_not_answer_in_time_is_named(ranks, learn, reference):
    learn("qwen2_5_vl", 0)
    busy = reference["reference"].__ray_call__.remote(lambda _: time.sleep(4))
    with pytest.raises(ResourceError, match=r"^reference .* weights.timeout_s = 1, before the upd"):
        publish(HASTY, 60, ranks, reference)
    ray.get(busy, timeout=WAIT_S)
    busy = ranks["learner rank 1"].__ray_call__.remote(lambda _: time.sleep(4))
    with pytest.raises(ResourceError, match=r"^learner rank 1 \(node .*\) did not answer within"):
        publish(HASTY, 61, ranks, reference)
    ray.get(busy, timeout=WAIT_S)


GPUS = [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
HINT = "VERIPO_TEST_CUDA names those that tests may use"


@pytest.fixture
def on_gpus(
    ray_session, tiny_checkpoint
) -> Iterator[Callable[..., tuple[dict[str, Any], dict[str, Any]]]]:
    """on_gpus(transport, gpu of the learner, gpu of the worker): a rank and a worker, by name."""
    made: list[Any] = []

    def actor(kind: type, gpu: str, *args: Any, **kwargs: Any) -> Any:
        variables = {"CUDA_VISIBLE_DEVICES": gpu, "DS_ACCELERATOR": "cuda"}
        remote = ray.remote(kind).options(num_cpus=1, runtime_env={"env_vars": variables})
        made.append(remote.remote(str(tiny_checkpoint), *args, device="cuda", **kwargs))
        return made[-1]

    def start(transport: str, ours: str, theirs: str) -> tuple[dict[str, Any], dict[str, Any]]:
        cfg = config.Learner(dtype="float32", micro_batch_tokens=60)
        rollout = ROLLOUT.model_copy(update={"gpu_memory_utilization": 0.3})
        rank = actor(LearnerRank, ours, cfg)
        worker = actor(RolloutWorker, theirs, rollout, transport=transport)
        address = ray.get(rank.address.remote(), timeout=WAIT_S)
        ray.get([rank.join.remote(address), worker.ping.remote()], timeout=3 * WAIT_S)
        return {"learner rank 0": rank}, {"rollout worker 0": worker}

    yield start
    for handle in made:
        ray.kill(handle)


@pytest.mark.skipif(len(GPUS) < 2, reason=f"NCCL wants a GPU a process: needs two GPUs ({HINT})")
def test_after_a_broadcast_rollouts_have_the_learner_s_log_probabilities(on_gpus, tiny_checkpoint):
    _sync_twice("nccl", *on_gpus("nccl", *GPUS[:2]), tiny_checkpoint)


@pytest.mark.skipif(len(GPUS) < 1, reason=f"needs a GPU ({HINT})")
def test_after_a_sync_within_a_gpu_rollouts_have_the_learner_s_log_probabilities(
    on_gpus, tiny_checkpoint
):
    _sync_twice("cuda_ipc", *on_gpus("cuda_ipc", GPUS[0], GPUS[0]), tiny_checkpoint)


def _sync_twice(
    transport: config.TransportName, ranks: Any, workers: dict[str, Any], checkpoint: Path
) -> None:
    """The second time through what was opened for the first; then by way of the object store."""
    sync = WeightSync(config.Weights(bucket_mb=0.1, timeout_s=WAIT_S), transport)
    (worker,) = workers.values()
    for version, publish_or_refit in ((1, sync.publish), (2, sync.publish), (3, sync.refit)):
        every(ranks, "grpo_step", *another_step(checkpoint))
        asyncio.run(publish_or_refit(version, ranks, workers))
        group = sample(worker, checkpoint)
        assert {rollout.policy_version for rollout in group.rollouts} == {version}
        assert gap(ranks, group, checkpoint) <= CLOSE
