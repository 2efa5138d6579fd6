"""Wrong values are told before anything is rendered: the setting, its value, and the fix."""

from __future__ import annotations

import pytest
import yaml
from typer.testing import CliRunner

from cluster.kuberay.command import read, render
from veripo_ray.cli import app
from veripo_ray.errors import ConfigError, ResourceError


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["gpu=8"], "did you mean gpus?"),
        (["redis.adress=redis:6379"], "did you mean redis.address?"),
        (
            ["gpus=12", "gpus_per_node=8"],
            "gpus = 12 is not a multiple of gpus_per_node = 8; make it 16",
        ),
        (["name=Run_1"], "name: "),
        (["image=veripo-ray"], "'veripo-ray' names no fixed version"),
        (["image=registry:5000/veripo-ray:latest"], "add a tag other than latest"),
        (["storage=/nfs/runs"], "'/nfs/runs' is no storage; write pvc:CLAIM"),
        (["storage=s3://b/c", "storage_gb=5"], "storage_gb = 5 is the size of a claim"),
        (["rollout.min_nodes=3", "rollout.max_nodes=1"], "rollout.max_nodes = 1 is less than"),
        (["gpus=0", "rollout.max_nodes=1"], "rollout.max_nodes = 1 adds GPU nodes, but gpus = 0"),
        (
            ["head.shared_memory_gb=64"],
            "head.shared_memory_gb = 64 is not less than head.memory_gb",
        ),
        (["read_only={models: /data}"], "read_only.models = /data is taken"),
        (["verifier.args={replica: 2}"], "did you mean replicas?"),
        (["verifier.args={replicas: 9}"], "9 replicas need a CPU each"),
        (["verifier.args={token_env: MINE}"], "name the Secret by verifier.token_secret"),
        (
            ["verifier.args={judge: vllm, judges.vllm.model: /models/judge, judges.vllm.gpus: 1}"],
            "verifier.max_nodes = 1 is less than the judge's model needs: 1 x 1",
        ),
        (["gpus"], "'gpus' is not KEY=VALUE"),
    ],
)
def test_each_mistake_is_named_with_its_value_and_its_fix(overrides, says):
    with pytest.raises(ConfigError) as caught:
        read({}, overrides)
    assert says in str(caught.value)
    assert caught.value.fix


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        read({"gpus": 12, "gpus_per_node": 8, "storage": "s3://b/c"}, ["storage_gb=5"])
    assert "gpus = 12" in str(caught.value)
    assert "storage_gb = 5" in str(caught.value)


def test_options_win_over_key_value_and_these_over_the_file(tmp_path):
    file = tmp_path / "values.yaml"
    file.write_text("{gpus: 8, gpus_per_node: 4, name: of-the-file, settings: [seed=1]}")
    values = read({"name": "of-the-option"}, ["gpus=16", "name=x", "recipe.seed=2"], file)
    assert (values.name, values.gpus, values.fixed_nodes) == ("of-the-option", 16, 4)
    assert values.settings == ("seed=1", "seed=2")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["recipe.rollout.worker=2"], "did you mean rollout.workers?"),
        (["recipe.device=cpu"], "the recipe's device = cpu, but gpus = 8"),
        (["rollout.max_nodes=2"], r"rollout.max_nodes = 2 lets the cluster grow, but no more"),
        (["recipe=nothing"], "unknown recipe 'nothing'"),
    ],
)
def test_a_recipes_mistakes_are_told_as_veripo_train_tells_them(overrides, says):
    with pytest.raises(ConfigError, match=r"(?s)" + says.replace("?", r"\?")):
        render(read({"gpus": 8}, overrides), "job")


def test_a_recipe_that_needs_more_than_the_cluster_has_is_refused():
    with pytest.raises(ResourceError, match=r"rollout\.workers = 16"):
        render(read({"gpus": 8}, ["recipe.rollout.workers=16"]), "job")
    assert render(read({"gpus": 24}, ["recipe.rollout.workers=16"]), "job")


def test_the_command_writes_files_or_prints_them(tmp_path):
    run = CliRunner().invoke
    done = run(app, ["manifests", "--gpus", "8", "--name", "night", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "job.yaml",
        "cluster.yaml",
        "service.yaml",
    }
    printed = run(app, ["manifests", "--gpus", "8", "--name", "night", "--kind", "job"])
    assert printed.output == (tmp_path / "out" / "job.yaml").read_text()
    kinds = [document["kind"] for document in yaml.safe_load_all(printed.output)]
    assert kinds == ["NetworkPolicy", "ConfigMap", "RayJob"]
    with pytest.raises(ConfigError, match="no such kind: 'pod'"):
        run(app, ["manifests", "--kind", "pod"], catch_exceptions=False)
