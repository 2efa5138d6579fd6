"""Every process has one place, no node or GPU is given away twice, and what is short is named."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray import config
from veripo_ray.errors import ConfigError, ResourceError
from veripo_ray.placement import Cluster, Node, Plan, Role, attempt, plan


def _run(**sections: Any) -> config.Run:
    return config.Run.model_validate(
        {
            "model": "tinyworld",
            "output": Path("unused"),
            "device": "cuda",
            "schedule": [{"phase": "grpo"}],
            "data": {"tinyworld": {}},
            **sections,
        }
    )


nodes = st.builds(
    Node,
    id=st.uuids().map(str),
    cpus=st.integers(1, 64).map(float),
    gpus=st.integers(0, 8).map(float),
)
clusters = st.lists(nodes, min_size=1, max_size=5).map(lambda found: Cluster(tuple(found)))
judges = st.sampled_from([0, 0.25, 0.5, 1])


@st.composite
def runs(draw: st.DrawFn) -> config.Run:
    layout = draw(st.sampled_from(["separate", "colocated"]))
    wide = draw(st.sampled_from([1, 2, 4])) if layout == "separate" else 1
    vllm = {"model": "/m", "gpus": draw(judges), "replicas": draw(st.integers(1, 3))}
    return _run(
        device=draw(st.sampled_from(["cuda", "cpu"])),
        rollout={"workers": draw(st.integers(1, 6)), "tensor_parallel": wide},
        learner={"ranks": draw(st.integers(1, 8))},
        features={"decoders": draw(st.integers(1, 4))},
        verifier={"replicas": draw(st.integers(1, 3)), "judge": "vllm", "judges": {"vllm": vllm}},
        placement={
            "layout": layout,
            "learner": draw(st.sampled_from(["pack", "spread"])),
            "rehearse": True,
        },
    )


def _attempt(run: config.Run, cluster: Cluster) -> Plan | None:
    found = attempt(run, cluster)
    return found if isinstance(found, Plan) else None


@given(runs(), clusters)
def test_no_node_and_no_gpu_is_given_away_twice(run: config.Run, cluster: Cluster) -> None:
    found = _attempt(run, cluster)
    cpus: dict[str, float] = defaultdict(float)
    parts: dict[tuple[str, int], float] = defaultdict(float)
    for placed in found.placed if found else ():
        cpus[placed.node.id] += placed.bundle.cpus
        assert len(set(placed.gpus)) == len(placed.gpus)
        for number in placed.gpus:
            assert 0 <= number < placed.node.gpus
            parts[placed.node.id, number] += min(placed.bundle.gpus, 1.0)
        if placed.bundle.gpus == 1:
            assert sum(p.gpus for p in placed.bundle.processes) <= 1
    for node in cluster.nodes:
        assert cpus[node.id] <= node.cpus
    assert all(part <= 1 + 1e-6 for part in parts.values())


@given(runs(), clusters)
def test_every_process_has_one_place_and_a_tensor_parallel_group_one_node(
    run: config.Run, cluster: Cluster
) -> None:
    found = _attempt(run, cluster)
    if found is None:
        return
    seen = Counter((p.role, p.number) for placed in found.placed for p in placed.bundle.processes)
    assert set(seen.values()) == {1}
    assert Counter(role for role, _ in seen) == {
        Role.ROLLOUT: run.rollout.workers,
        Role.LEARNER: run.learner.ranks,
        Role.ENCODER: 1,
        Role.REFERENCE: 1,
        Role.VERIFIER: run.verifier.replicas,
        Role.JUDGE: run.verifier.judges.vllm.replicas,
    }
    wide = run.rollout.tensor_parallel
    for number in range(run.rollout.workers):
        seat = found.seat(Role.ROLLOUT, number)
        assert len(seat.gpus) == wide  # all on seat.node: a bundle has one


@given(runs(), clusters)
def test_what_is_refused_fits_a_cluster_with_a_node_for_every_bundle(
    run: config.Run, cluster: Cluster
) -> None:
    if _attempt(run, cluster) is None:
        roomy = Cluster.uniform(32, gpus=8, cpus=64)
        assert _attempt(run, roomy) is not None


def test_learner_ranks_are_packed_or_spread() -> None:
    cluster = Cluster.uniform(3, gpus=4)
    packed = plan(_run(learner={"ranks": 3}), cluster)
    assert len({packed.seat(Role.LEARNER, n).node.id for n in range(3)}) == 1
    spread = plan(_run(learner={"ranks": 3}, placement={"learner": "spread"}), cluster)
    assert len({spread.seat(Role.LEARNER, n).node.id for n in range(3)}) == 3


def test_a_worker_and_a_rank_share_a_gpu_when_colocated() -> None:
    run = _run(rollout={"workers": 2}, learner={"ranks": 2}, placement={"layout": "colocated"})
    found = plan(run, Cluster.uniform(1, gpus=2))
    for number in range(2):
        assert found.seat(Role.ROLLOUT, number) is found.seat(Role.LEARNER, number)
    assert found.seat(Role.REFERENCE, 0) is found.seat(Role.ENCODER, 0)
    with pytest.raises(ConfigError, match=r"placement.layout = colocated shares GPUs"):
        plan(run.model_copy(update={"device": "cpu"}), Cluster.uniform(1, gpus=2))


def test_settings_that_do_not_go_with_a_shared_gpu_are_refused() -> None:
    colocated = {"layout": "colocated"}
    with pytest.raises(ValueError, match=r"rollout.tensor_parallel = 2 does not go with"):
        _run(rollout={"tensor_parallel": 2}, placement=colocated)
    with pytest.raises(ValueError, match=r"placement.sleep_level = 2 drops every weight"):
        _run(learner={"lora": {}}, placement=colocated | {"sleep_level": 2})
    with pytest.raises(ValueError, match=r"schedule.0.staleness = 1"):
        _run(schedule=[{"phase": "grpo", "staleness": 1}], placement=colocated)


def test_what_is_short_is_named() -> None:
    run = _run(rollout={"workers": 3}, learner={"ranks": 4})
    with pytest.raises(ResourceError, match=r"needs 8 GPUs, .* has 4"):
        plan(run, Cluster.uniform(1, gpus=4))
    wide = _run(rollout={"tensor_parallel": 4})
    with pytest.raises(ResourceError, match="no node has room for rollout"):
        plan(wide, Cluster.uniform(4, gpus=2))
    judge = {"judge": "vllm", "judges": {"vllm": {"model": "/m", "gpus": 0.5, "cpus": 2}}}
    small = _run(device="cpu", verifier=judge)
    plan(small, Cluster.uniform(1, gpus=1, cpus=8))
    with pytest.raises(ResourceError, match=r"needs 8 CPUs, .* has 7"):
        plan(small, Cluster.uniform(1, gpus=1, cpus=7))
    with pytest.raises(ResourceError, match=r"needs 0.5 GPUs, .* has 0"):
        plan(small, Cluster.uniform(1, gpus=0, cpus=8))


@pytest.mark.parametrize("layout", ["separate", "colocated"])
def test_a_learner_with_adapters_is_its_own_reference_and_fits_a_single_gpu(layout: str) -> None:
    one = Cluster((Node("n", 16.0, 1.0),))
    three = Cluster((Node("n", 16.0, 3.0),))
    run = _run(learner={"lora": {"rank": 8}}, placement={"layout": layout})
    found = plan(run, one if layout == "colocated" else three)
    roles = [process.role for placed in found.placed for process in placed.bundle.processes]
    assert Role.REFERENCE not in roles
    assert {Role.ENCODER, Role.LEARNER, Role.ROLLOUT} <= set(roles)
