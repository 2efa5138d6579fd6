"""What is proposed to whoever is refused fits, as it is printed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from veripo_ray import config
from veripo_ray.errors import ResourceError
from veripo_ray.placement import Cluster, Geometry, Misfit, Plan, attempt, plan
from veripo_ray.placement.remedies import Remedies, applied

Recipe = Callable[..., config.Run]


def _as_printed(run: config.Run, line: str) -> config.Run:
    """The recipe with what a user copies from the message, through the recipe's own parser."""
    raw = OmegaConf.create(run.model_dump(mode="json"))
    for item in line.split():
        key, _, _ = item.partition("=")
        OmegaConf.update(raw, key, OmegaConf.select(OmegaConf.from_dotlist([item]), key))
    return config.Run.model_validate(OmegaConf.to_container(raw))


@settings(max_examples=25)
@given(st.data())
def test_every_proposal_fits_as_it_is_printed(recipe_of: Recipe, data: st.DataObject) -> None:
    draw = data.draw
    run = recipe_of(
        draw(st.sampled_from(["Qwen2.5-VL-3B-Instruct", "Qwen3-VL-8B-Instruct"])),
        rollout={
            "workers": draw(st.integers(1, 12)),
            "tensor_parallel": draw(st.sampled_from([1, 4])),
        },
        learner={
            "ranks": draw(st.integers(1, 12)),
            "zero_stage": draw(st.sampled_from([0, 2])),
        },
        features={"decoders": draw(st.integers(1, 64))},
    )
    cluster = Cluster.uniform(
        draw(st.integers(1, 2)),
        gpus=draw(st.sampled_from([1, 4, 8])),
        gpu_memory_gb=draw(st.sampled_from([24, 48, 80])),
    )
    model = Geometry.of(run.model)
    if isinstance(attempt(run, cluster, model), Plan):
        return
    for changes in Remedies(run, cluster, model).nearest():
        changed = _as_printed(run, " ".join(map(str, changes)))
        assert isinstance(attempt(changed, cluster, model), Plan)


def _refusal(run: config.Run, cluster: Cluster) -> str:
    with pytest.raises(ResourceError) as refused:
        plan(run, cluster, Geometry.of(run.model))
    return str(refused.value)


STRONG = {"zero_stage": 3, "gradient_checkpointing": True}


def test_too_few_gpus_are_answered_by_fewer_processes_or_by_sharing(recipe_of: Recipe) -> None:
    run = recipe_of(rollout={"workers": 8}, learner={"ranks": 8, **STRONG})
    said = _refusal(run, Cluster.uniform(1, gpus=8, gpu_memory_gb=80))
    assert "the run needs 17 GPUs, 1 node of 8 GPUs has 8" in said
    assert "placement.layout=colocated" in said
    assert "2 more nodes of 8 GPUs" in said


def test_a_small_machine_without_gpus_is_told_how_to_start_ray(recipe_of: Recipe) -> None:
    run = recipe_of(device="cpu")
    said = _refusal(run, Cluster.uniform(1, gpus=0, cpus=2))
    needed = re.search(r"ray start --head --num-cpus (\d+)", said)
    assert needed
    assert f"the run needs {needed[1]} CPUs" in said
    assert isinstance(attempt(run, Cluster.uniform(1, gpus=0, cpus=int(needed[1]))), Plan)


def test_a_tensor_parallel_group_wider_than_any_node_is_made_narrower(recipe_of: Recipe) -> None:
    run = recipe_of(rollout={"tensor_parallel": 4}, learner={"ranks": 4, **STRONG})
    said = _refusal(run, Cluster.uniform(8, gpus=2, gpu_memory_gb=80))
    assert "no node has room for rollout" in said
    assert "rollout.tensor_parallel=2" in said


def test_a_learner_that_does_not_fit_is_sharded_or_recomputes(recipe_of: Recipe) -> None:
    run = recipe_of("Qwen2.5-VL-3B-Instruct", learner={"ranks": 4})
    said = _refusal(run, Cluster.uniform(1, gpus=8, gpu_memory_gb=80))
    assert "a GPU has 80.0 GB of memory" in said
    assert "learner.gradient_checkpointing=true" in said


def test_too_few_cpus_are_answered_by_fewer_decoders(recipe_of: Recipe) -> None:
    run = recipe_of(features={"decoders": 40}, learner={"ranks": 4, **STRONG})
    cluster = Cluster.uniform(1, gpus=8, gpu_memory_gb=80, cpus=32)
    said = _refusal(run, cluster)
    assert "CPUs" in said
    assert "features.decoders=" in said


def test_the_nearest_value_is_proposed_and_no_farther_one(recipe_of: Recipe) -> None:
    run = recipe_of(rollout={"workers": 5}, learner={"ranks": 4, **STRONG})
    cluster = Cluster.uniform(1, gpus=8, gpu_memory_gb=80)
    (first, *_) = Remedies(run, cluster, Geometry.of(run.model)).nearest()
    assert [str(change) for change in first] == ["rollout.workers=3"]


def test_what_nothing_helps_is_said_so(recipe_of: Recipe) -> None:
    said = _refusal(recipe_of(), Cluster.uniform(1, gpus=1, gpu_memory_gb=16))
    assert "no setting is enough" in said


def test_many_changes_at_once_are_found_where_few_are_not_enough(recipe_of: Recipe) -> None:
    """A recipe for eight GPUs on one of 24 GB; nothing is proposed that could be left out."""
    run = recipe_of("Qwen2.5-VL-3B-Instruct", rollout={"workers": 3}, learner={"ranks": 4})
    cluster, model = Cluster.uniform(1, gpus=1, gpu_memory_gb=24), Geometry.of(run.model)
    remedies = Remedies(run, cluster, model)
    (changes,) = remedies.nearest()
    keys = {change.key for change in changes}
    assert {"placement.layout", "rollout.workers", "learner.ranks"} < keys
    for change in changes:
        assert not remedies.fits(other for other in changes if other is not change)


def test_where_there_is_no_gpu_at_all_another_machine_is_named(recipe_of: Recipe) -> None:
    assert "RAY_ADDRESS" in _refusal(recipe_of(), Cluster.uniform(1, gpus=0))


def test_a_single_gpu_of_24_gb_takes_adapters(recipe_of: Recipe) -> None:
    """Everything on one card: worker and rank take turns, the reference waits in memory."""
    run = recipe_of(
        "Qwen2.5-VL-3B-Instruct",
        rollout={"max_tokens": 768, "max_model_len": 4096, "gpu_memory_utilization": 0.45},
        evaluation={"max_tokens": 768},
        learner={"micro_batch_tokens": 4096, "gradient_checkpointing": True},
        placement={"layout": "colocated"},
    )
    cluster, model = Cluster.uniform(1, gpus=1, gpu_memory_gb=24), Geometry.of(run.model)
    assert isinstance(attempt(run, cluster, model), Misfit)
    with_adapters: dict[str, Any] = {"learner.lora.rank": 32}
    assert isinstance(attempt(applied(run, with_adapters), cluster, model), Plan)
