"""Estimates of memory against numbers that others published, or that are worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from veripo_ray import config
from veripo_ray.errors import ResourceError
from veripo_ray.placement import Cluster, Geometry, Role, plan
from veripo_ray.placement.memory import kv_bytes, states

Recipe = Callable[..., config.Run]
A_NODE = Cluster.uniform(1, gpus=8, gpu_memory_gb=80)


@pytest.mark.parametrize(("stage", "published_gb"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_model_states_are_those_of_the_zero_paper(stage: int, published_gb: float) -> None:
    """arXiv 1910.02054, table 1: 7.5B parameters, 64 GPUs, mixed-precision Adam (K = 12)."""
    found = states(7.5e9, 7.5e9, ranks=64, stage=stage)
    assert found.total / 1e9 == pytest.approx(published_gb, rel=0.005)


def test_sixteen_bytes_a_parameter_on_one_gpu() -> None:
    assert states(1.0, 1.0, ranks=1, stage=0).total == 16


@pytest.mark.parametrize(("model", "kib"), [("3B", 36), ("7B", 56)])
def test_keys_and_values_of_a_token(model: str, kib: int) -> None:
    """2 x layers x heads x width x 2 bytes: 36 x 2 x 128 and 28 x 4 x 128."""
    geometry = Geometry.of(f"Qwen2.5-VL-{model}-Instruct")
    assert kv_bytes(geometry, 2) == kib * 1024
    assert kv_bytes(geometry, 2, wide=2) == kib * 1024 / 2
    fewest = kv_bytes(geometry, 2, wide=geometry.kv_heads)
    assert kv_bytes(geometry, 2, wide=8) == fewest  # heads are copied, not halved


def _rank(recipe_of: Recipe, **learner: Any) -> Any:
    run = recipe_of(learner={"ranks": 4, "gradient_checkpointing": True, **learner})
    found = plan(run, Cluster.uniform(1, gpus=8, gpu_memory_gb=1000), Geometry.of(run.model))
    memory = found.memory(Role.LEARNER)
    assert memory is not None
    return memory


def test_zero_stages_divide_what_they_divide(recipe_of: Recipe) -> None:
    """Gradients add up in float32: 4 bytes, and in stage 1 another 2 of the backward pass."""
    language = Geometry.of("Qwen2.5-VL-7B-Instruct").parameters
    one, two, three = (_rank(recipe_of, zero_stage=stage) for stage in (1, 2, 3))
    assert one.weights == two.weights == 2 * language == 4 * three.weights
    assert one.gradients == 6 * language
    assert two.gradients == three.gradients == 4 * language / 4
    assert one.optimiser == two.optimiser == three.optimiser == 12 * language / 4


def test_adapters_train_a_hundredth(recipe_of: Recipe) -> None:
    whole, adapters = _rank(recipe_of), _rank(recipe_of, lora={"rank": 32})
    assert adapters.optimiser < whole.optimiser / 50
    assert whole.weights < adapters.weights < 1.02 * whole.weights


def test_gradient_checkpointing_keeps_little_of_a_layer(recipe_of: Recipe) -> None:
    without = _rank(recipe_of, gradient_checkpointing=False)
    assert _rank(recipe_of).activations < without.activations / 5


def test_the_cache_is_what_a_share_leaves(recipe_of: Recipe) -> None:
    run = recipe_of(learner={"ranks": 4, "zero_stage": 3, "gradient_checkpointing": True})
    worker = plan(run, A_NODE, Geometry.of(run.model)).memory(Role.ROLLOUT)
    assert worker is not None
    assert worker.total == pytest.approx(0.85 * 80e9)
    assert worker.weights == 2 * Geometry.of(run.model).parameters


def test_model_states_are_what_deepspeed_allocates(tiny_checkpoint: Any) -> None:
    """One rank in float32 without ZeRO: weights, gradients and two moments, tensor by tensor."""
    from veripo_ray.policy.qwen_vl import QwenVL

    policy = QwenVL.load(tiny_checkpoint, dtype=torch.float32, tower=False)
    weights = list(policy.trainable().values())
    optimiser = torch.optim.AdamW(weights)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimiser.step()
    moments = [t for s in optimiser.state.values() for t in s.values() if t.ndim or t.numel() > 1]
    held = sum(t.nbytes for w in weights for t in (w, w.grad) if t is not None)
    held += sum(t.nbytes for t in moments)
    trained = Geometry.of(str(tiny_checkpoint)).parameters
    counted = states(
        trained, trained, ranks=1, stage=0, weight_bytes=4, gradient_bytes=(4, 0), optimiser_bytes=8
    )
    assert counted.total == held


def test_memory_that_nobody_knows_is_not_checked(recipe_of: Recipe) -> None:
    run = recipe_of()
    silent = Cluster(tuple(replace(node, gpu_memory=None) for node in A_NODE.nodes))
    assert plan(run, silent, Geometry.of(run.model)).loads
    told = run.model_copy(update={"placement": config.Placement(gpu_memory_gb=16)})
    with pytest.raises(ResourceError, match=r"16\.0 GB"):
        plan(told, silent, Geometry.of(run.model))
