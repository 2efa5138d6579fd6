"""Steps are those of plain torch on the whole batch, whatever the stage or the micro-batches."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from veripo_ray import config
from veripo_ray.errors import ConfigError, PrecisionError
from veripo_ray.learner import Learner
from veripo_ray.learner.engine import ADAM_BETAS
from veripo_ray.learner.objectives import DpoObjective, GrpoObjective
from veripo_ray.policy.grouped import response_logprobs
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.weights import to_tensor

LR = 1e-4  # three steps move a weight by 3e-4; Adam makes noise of gradients that should be 0
GRPO = config.Grpo(lr=LR)
DPO = config.Dpo(lr=LR, nll_coef=0.2)
STEPS = 3


def plain_torch(
    checkpoint: Path, batch, kind: str, *, tower: bool = False
) -> tuple[dict[str, np.ndarray], list[float]]:
    """The same steps without DeepSpeed, ranks or micro-batches: weights and gradient norms."""
    policy = QwenVL.load(checkpoint, dtype=torch.float32, tower=tower)
    weights = policy.trainable()
    optimizer = torch.optim.AdamW(weights.values(), lr=LR, betas=ADAM_BETAS, weight_decay=0.0)
    grpo = kind == "grpo"
    examples = batch.groups if grpo else batch.pairs
    objective = GrpoObjective(examples, GRPO, None) if grpo else DpoObjective(examples, DPO)
    packed = [example.packed(batch.features[example.id]) for example in examples]
    norms = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss, _ = objective(range(len(examples)), response_logprobs(policy, packed))
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)))
        optimizer.step()
    return {name: weight.detach().numpy() for name, weight in weights.items()}, norms


@pytest.fixture(scope="module")
def expected(tiny_checkpoint, batch):
    return {kind: plain_torch(tiny_checkpoint, batch, kind) for kind in ("grpo", "dpo")}


def steps(learner, batch, kind: str = "grpo", count: int = STEPS) -> list[dict[str, float]]:
    if kind == "grpo":
        return [learner.grpo_step(batch.groups, batch.features, GRPO) for _ in range(count)]
    return [learner.dpo_step(batch.pairs, batch.features, DPO) for _ in range(count)]


def assert_same(weights, expected, tolerance=3e-6) -> None:
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        np.testing.assert_allclose(weight, expected[name], atol=tolerance, rtol=0, err_msg=name)


@pytest.mark.parametrize("kind", ["grpo", "dpo"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_is_that_of_plain_torch(stage, kind, learner, batch, expected):
    trained = learner(zero_stage=stage, micro_batch_tokens=100)
    metrics = steps(trained, batch, kind)
    weights, norms = expected[kind]
    assert_same(trained.weights(), weights)
    assert [m["grad_norm"] for m in metrics] == pytest.approx(norms, rel=1e-5)


@pytest.fixture(scope="module")
def expected_of_the_tower(tiny_checkpoint, batch_of_frames):
    return plain_torch(tiny_checkpoint, batch_of_frames, "grpo", tower=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 0, "micro_batch_tokens": 1},
        {"zero_stage": 2, "micro_batch_tokens": 100},
        {"zero_stage": 3, "micro_batch_tokens": 100},
        {"zero_stage": 0, "gradient_checkpointing": True},
    ],
)
def test_a_step_of_a_tower_that_learns_is_that_of_plain_torch(
    settings, learner, batch_of_frames, expected_of_the_tower
):
    trained = learner(train_vision=True, **settings)
    metrics = steps(trained, batch_of_frames)
    weights, norms = expected_of_the_tower
    assert_same(trained.weights(), weights, tolerance=4e-5)  # Adam enlarges rounding near 0
    assert [m["grad_norm"] for m in metrics] == pytest.approx(norms, rel=1e-5)
    assert [m["media_seen"] for m in metrics] == [4] * STEPS  # of five groups one is text alone


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 0, "gradient_checkpointing": True},
        {"zero_stage": 3, "micro_batch_tokens": 100},
    ],
)
def test_a_step_of_qwen3_vl_with_its_tower_is_that_of_plain_torch(
    settings, qwen3_checkpoint, qwen3_batch
):
    cfg = config.Learner(dtype="float32", train_vision=True, **settings)
    trained = Learner(qwen3_checkpoint, cfg)
    metrics = steps(trained, qwen3_batch)
    weights, norms = plain_torch(qwen3_checkpoint, qwen3_batch, "grpo", tower=True)
    assert any("deepstack" in name for name in weights)
    assert_same(trained.weights(), weights, tolerance=4e-5)
    assert [m["grad_norm"] for m in metrics] == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("settings", [{"micro_batch_tokens": 1}, {"gradient_checkpointing": True}])
def test_how_memory_is_saved_does_not_change_a_step(settings, learner, batch, expected):
    trained = learner(**settings)
    steps(trained, batch)
    assert_same(trained.weights(), expected["grpo"][0])


def test_under_zero_3_the_head_is_gathered_as_often_for_many_chunks_as_for_one(
    monkeypatch, learner, batch
):
    """Ranks differ in their number of chunks: a gather for each would hang the others."""
    gathers = []
    for chunk in (1024, 7):
        trained = learner(zero_stage=3)
        score = partial(response_logprobs, chunk=chunk)
        monkeypatch.setattr("veripo_ray.learner.learner.response_logprobs", score)
        with counted_gathers(monkeypatch) as count:
            steps(trained, batch, count=1)
        gathers.append(len(count))
    assert gathers[0] == gathers[1] > 0


@contextmanager
def counted_gathers(monkeypatch):
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    calls, original = (
        [],
        PartitionedParameterCoordinator._PartitionedParameterCoordinator__all_gather_params,
    )
    name = "_PartitionedParameterCoordinator__all_gather_params"
    with monkeypatch.context() as patch:
        patch.setattr(
            PartitionedParameterCoordinator,
            name,
            lambda self, *args, **kw: (calls.append(1), original(self, *args, **kw))[1],
        )
        yield calls


def test_gradient_clipping_bounds_the_step_but_reports_the_true_norm(learner, batch):
    bounded, free = learner(grad_clip=1e-3), learner(grad_clip=1e3)
    norms = [steps(each, batch, count=1)[0]["grad_norm"] for each in (bounded, free)]
    assert norms[0] == pytest.approx(norms[1])
    assert norms[0] > 1e-3


def test_metrics_tell_what_happened(learner, batch):
    (metrics,) = steps(learner(), batch, count=1)
    assert metrics["tokens"] == sum(len(r) for group in batch.groups for r in group.responses)
    assert metrics["lr"] == GRPO.lr
    assert metrics["entropy"] == pytest.approx(np.log(50), abs=1.0)  # nearly uniform at the start
    assert metrics.keys() >= {"loss", "clip_fraction", "approx_kl", "ratio", "logprob_gap_max"}


def on_policy(learner, batch):
    """The groups as if this learner had sampled them."""
    packed = [group.packed(batch.features[group.id]) for group in batch.groups]
    return [
        replace(group, old_logprobs=logprobs)
        for group, logprobs in zip(batch.groups, learner.logprobs(packed), strict=True)
    ]


def test_on_policy_data_has_no_gap_and_a_ratio_of_one(learner, batch):
    trained = learner()
    metrics = trained.grpo_step(on_policy(trained, batch), batch.features, GRPO, max_gap=1e-5)
    assert metrics["logprob_gap_max"] <= 1e-5
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["clip_fraction"] == 0


def test_a_second_epoch_measures_its_ratio_from_the_recorded_logprobs(learner, batch):
    trained = learner()
    groups = on_policy(trained, batch)
    first, second = (trained.grpo_step(groups, batch.features, GRPO) for _ in range(2))
    assert first["approx_kl"] < 1e-6 < second["approx_kl"]


def test_a_gap_above_the_limit_stops_before_the_weights_change(learner, batch):
    trained = learner()
    groups = on_policy(trained, batch)
    wrong = [row.copy() for row in groups[2].old_logprobs]
    wrong[1][4] += 0.25
    groups[2] = replace(groups[2], old_logprobs=wrong)
    before = trained.weights()
    with pytest.raises(PrecisionError, match=r"differ by 0\.25 .* group 'g2', the limit is 0\.001"):
        trained.grpo_step(groups, batch.features, GRPO, max_gap=1e-3)
    assert_same(trained.weights(), before, tolerance=0)
    with pytest.raises(PrecisionError, match="g2"):  # its spent gradients must not be used
        trained.dpo_step(batch.pairs, batch.features, DPO)


def test_the_gap_error_names_the_likely_causes(learner, batch):
    with pytest.raises(PrecisionError) as caught:
        learner().grpo_step(batch.groups, batch.features, GRPO, max_gap=1e-3)
    for cause in ("positions", "caches", "temperature", "banned tokens"):
        assert cause in caught.value.fix


def test_a_gap_that_is_not_a_number_is_above_every_limit(learner, batch):
    broken = [np.full_like(row, np.nan) for row in batch.groups[1].old_logprobs]
    groups = [*batch.groups[:1], replace(batch.groups[1], old_logprobs=broken)]
    with pytest.raises(PrecisionError, match="group 'g1'"):
        learner().grpo_step(groups, batch.features, GRPO, max_gap=1.0)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(learner, batch):
    trained = learner()
    groups = [replace(batch.groups[0], advantages=np.array([np.inf, 0, 0], np.float32))]
    before = trained.weights()
    with pytest.raises(PrecisionError, match="the loss is"):
        trained.grpo_step(groups, batch.features, GRPO)
    assert_same(trained.weights(), before, tolerance=0)


def test_dpo_starts_at_log_two_and_prefers_the_chosen_more_and_more(learner, batch):
    trained = learner()
    packed = [pair.packed(batch.features[pair.id]) for pair in batch.pairs]
    scores = [[float(side.sum()) for side in pair] for pair in trained.logprobs(packed)]
    pairs = [
        replace(pair, reference_chosen=chosen, reference_rejected=rejected)
        for pair, (chosen, rejected) in zip(batch.pairs, scores, strict=True)
    ]
    cfg = config.Dpo(lr=1e-3)
    metrics = [trained.dpo_step(pairs, batch.features, cfg) for _ in range(4)]
    assert metrics[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    margins = [each["margin"] for each in metrics]
    assert margins == sorted(margins)
    assert metrics[-1]["accuracy"] == 1.0


def test_bfloat16_keeps_master_weights_in_float32(learner, batch):
    """Updates far below a bfloat16 step add up instead of being rounded away."""
    trained = learner(dtype="bfloat16")
    before = trained.weights()
    assert {array.dtype for array in before.values()} == {np.dtype("uint16")}
    for _ in range(12):
        trained.grpo_step(batch.groups, batch.features, config.Grpo(lr=1e-4))
    name = "model.layers.0.self_attn.q_proj.weight"
    moved = (to_tensor(trained.weights()[name]) - to_tensor(before[name])).float().abs().mean()
    assert float(moved) == pytest.approx(12e-4, rel=0.6)


def test_a_temperature_is_that_of_the_sampling_distribution(tiny_checkpoint, learner, batch):
    packed = [group.packed(batch.features[group.id]) for group in batch.groups]
    warm = Learner(tiny_checkpoint, config.Learner(dtype="float32"), temperature=2.0)
    expected = response_logprobs(warm.policy, packed, temperature=2.0)
    for ours, theirs in zip(warm.logprobs(packed), expected, strict=True):
        for row, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(row, other.detach().numpy(), atol=1e-6)


def test_weights_are_a_copy_and_carry_the_names_of_the_checkpoint(tiny_checkpoint, learner, batch):
    from safetensors.numpy import load_file

    trained = learner()
    before = trained.weights()
    kept = {name: array.copy() for name, array in before.items()}
    steps(trained, batch, count=1)
    assert_same(before, kept, tolerance=0)
    saved = load_file(next(tiny_checkpoint.glob("*.safetensors")))
    language = {name for name in saved if "visual" not in name}
    assert {name.replace("language_model.", "") for name in language} == before.keys()


def test_a_step_without_a_single_token_is_refused(learner, batch):
    with pytest.raises(ValueError, match="at least one response"):
        learner().grpo_step([], {}, GRPO)


def test_an_empty_response_takes_no_part(learner, batch):
    groups = [
        replace(
            group,
            responses=[group.responses[0][:0], *group.responses[1:]],
            old_logprobs=[group.old_logprobs[0][:0], *group.old_logprobs[1:]],
        )
        for group in batch.groups
    ]
    without = [
        replace(
            group,
            responses=group.responses[1:],
            old_logprobs=group.old_logprobs[1:],
            advantages=group.advantages[1:],
        )
        for group in batch.groups
    ]
    one, other = learner(), learner()
    one.grpo_step(groups, batch.features, GRPO)
    other.grpo_step(without, batch.features, GRPO)
    assert_same(one.weights(), other.weights())


def test_dr_grpo_needs_to_know_the_sampling_limit(learner, batch):
    with pytest.raises(ConfigError, match="constant"):
        learner().grpo_step(
            batch.groups, batch.features, config.Grpo(lr=1e-3, aggregation="constant")
        )


def test_a_kl_term_uses_the_reference_logprobs(learner, batch):
    trained = learner()
    groups = [replace(g, ref_logprobs=g.old_logprobs) for g in on_policy(trained, batch)]
    cfg = config.Grpo(lr=1e-3, kl_coef=0.1)
    first, second = (trained.grpo_step(groups, batch.features, cfg) for _ in range(2))
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert second["kl"] > 1e-6
