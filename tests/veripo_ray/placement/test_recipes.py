"""The recipes for real models fit the clusters that they are named for, and by a margin."""

from __future__ import annotations

import pytest

from veripo_ray import recipe
from veripo_ray.errors import ResourceError
from veripo_ray.placement import Cluster, Geometry, Role, plan

NODE = Cluster.uniform(1, gpus=8, gpu_memory_gb=80)
CLUSTERS = {
    "8gpu": NODE,
    "16gpu": Cluster.uniform(2, gpus=8, gpu_memory_gb=80),
    "24gb": Cluster.uniform(1, gpus=1, gpu_memory_gb=24),
}
NAMES = [name for name in recipe.available() if name.rpartition("_")[2] in CLUSTERS]
MARGIN = 0.1  # of a GPU: activations and what CUDA holds are estimates


def test_there_is_one_for_each_model_and_size_of_cluster() -> None:
    models = ("qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen3_vl_8b")
    assert set(NAMES) == {
        *(f"{model}_{size}" for model in models for size in ("8gpu", "16gpu")),
        "qwen2_5_vl_3b_lora_24gb",
    }


@pytest.mark.parametrize("name", NAMES)
def test_it_fits_its_cluster_and_leaves_no_gpu_idle(name: str) -> None:
    run, cluster = recipe.load(name), CLUSTERS[name.rpartition("_")[2]]
    found = plan(run, cluster, Geometry.of(run.model))
    assert len(found.loads) == cluster.total("GPU")
    for load in found.loads:
        assert load.there is not None
        assert load.peak <= (1 - MARGIN) * load.there, [(p.role, m.total) for p, m in load.needs]
    learning = {place.node.id for _, place in found.processes(Role.LEARNER)}
    assert len(learning) == 1  # ZeRO gathers and reduces within one node


def test_what_one_gpu_of_24_gb_cannot_train_whole_it_can_with_adapters() -> None:
    small = CLUSTERS["24gb"]
    run = recipe.load("qwen2_5_vl_3b_lora_24gb", ["learner.lora=null"])
    with pytest.raises(ResourceError, match=r"24\.0 GB"):
        plan(run, small, Geometry.of(run.model))
