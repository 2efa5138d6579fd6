"""Every manifest is one that KubeRay takes, and its pods are what they should be."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from cluster import launch
from cluster.kuberay.command import read, render
from cluster.preflight import CONFIG
from deployments.verifier import build
from veripo_ray import recipe
from veripo_ray.cli import app
from veripo_ray.verifier.client import TOKEN_ENV

CUSTOM = ("RayJob", "RayCluster", "RayService")
GROWS = "recipe.rollout.max_workers=20"
FULL = [
    "namespace=research",
    "auth_secret=ray-token",
    "redis={address: 'redis:6379', password_secret: redis-password}",
    "env_secrets=[storage-keys]",
    "image_pull_secrets=[registry]",
    "rollout.max_nodes=2",
    GROWS,
    "read_only={models: /models, videos: /videos}",
    "storage_gb=500",
    "job.deadline_hours=48",
    "verifier.max_nodes=3",
    "verifier.args={max_replicas: 8}",
]


def documents(options: dict[str, Any], overrides: list[str]) -> list[dict[str, Any]]:
    texts = render(read(options, overrides)).values()
    return [document for text in texts for document in yaml.safe_load_all(text)]


def custom(options: dict[str, Any], overrides: list[str]) -> dict[str, dict[str, Any]]:
    """The custom resources by kind."""
    found = {document["kind"]: document for document in documents(options, overrides)}
    return {kind: found[kind] for kind in CUSTOM}


@pytest.fixture(scope="module")
def full() -> list[dict[str, Any]]:
    return documents({"gpus": 16}, FULL)


@st.composite
def values(draw) -> tuple[dict[str, Any], list[str]]:
    each = draw(st.sampled_from([1, 4, 8]))
    gpus = draw(st.sampled_from([0, 8, 16, 64]))
    storage = draw(st.sampled_from(["pvc:runs", "pvc:runs.v2", "s3://bucket/a-folder", "gs://b/c"]))
    options = {
        "gpus": gpus,
        "storage": storage,
        "image": "registry:5000/veripo-ray@sha256:" + "0" * 64,
    }
    options |= {"gpus_per_node": each} if gpus else {}
    overrides = [*draw(st.lists(st.sampled_from(FULL), unique=True)), GROWS]
    if not gpus:
        overrides = [item for item in overrides if not item.startswith("rollout")]
    if not storage.startswith("pvc"):
        overrides = [item for item in overrides if not item.startswith("storage_gb")]
    return options, [*overrides, "cpu_nodes=2", f"job.retries={draw(st.integers(0, 9))}"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(values())
def test_kuberay_takes_every_manifest(mistakes, chosen):
    for document in custom(*chosen).values():
        assert mistakes(document) == []


def fields(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every field that has a schema: not of what maps free names."""
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in items:
        if isinstance(key, str):
            yield (*path, key)
        free = ("labels", "limits", "requests", "rayStartParams", "nodeSelector")
        if key not in free:
            yield from fields(value, (*path, key))


def renamed(document: dict[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    place[f"{path[-1]}x"] = place.pop(path[-1])
    return changed


@pytest.mark.parametrize("kind", CUSTOM)
def test_a_misspelt_field_is_found_wherever_it_is(full, schemas, kind):
    document = next(d for d in full if d["kind"] == kind)
    assert schemas[kind].is_valid(document)
    paths = [path for path in fields(document["spec"], ("spec",)) if len(path) > 1]
    assert len(paths) > 100
    unnoticed = [path for path in paths if schemas[kind].is_valid(renamed(document, path))]
    assert unnoticed == []


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("metadata.name", "Run", "name"),
        ("metadata.name", "a" * 48, "name"),
        ("spec.shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished"),
        ("spec.submissionMode", "SidecarMode", "SidecarMode"),
        ("spec.rayClusterSpec.rayVersion", "2.51.0", "token"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.minReplicas", 9, "replicas"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.redis-password", "x", "redis"),
        (
            "spec.rayClusterSpec.headGroupSpec.template.spec.restartPolicy",
            "Always",
            "restartPolicy",
        ),
        ("spec.rayClusterSpec.networkPolicy", {"mode": "DenyAll"}, "networkPolicy"),
    ],
)
def test_what_only_the_operator_would_refuse_is_found(full, mistakes, path, value, says):
    document = copy.deepcopy(next(d for d in full if d["kind"] == "RayJob"))
    assert mistakes(document) == []
    place: Any = document
    *way, last = path.split(".")
    for key in way:
        place = place[int(key)] if key.isdigit() else place[key]
    place[last] = value
    assert any(says in mistake for mistake in mistakes(document))


# --- what the pods are


def pods(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The spec of every pod, submitters included."""
    found = []
    for node in (json.loads(json.dumps(d)) for d in documents):
        stack = [node]
        while stack:
            part = stack.pop()
            if isinstance(part, dict):
                found += [part] if "containers" in part else []
                stack += part.values()
            elif isinstance(part, list):
                stack += part
    return found


def test_pods_are_confined(full):
    specs = pods(full)
    assert len(specs) == 3 + 1 + 3 + 2  # RayJob and its submitter, RayCluster, RayService
    for spec in specs:
        context, (container,) = spec["securityContext"], spec["containers"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert spec["automountServiceAccountToken"] is False


def test_a_pod_is_promised_what_it_may_use_and_its_shared_memory_holds_rays_store(full):
    for spec in pods(full):
        (container,) = spec["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        if container["name"] == "ray-job-submitter":
            continue
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volume = next(v for v in spec["volumes"] if v["name"] == mounts["/dev/shm"])
        assert volume["emptyDir"]["medium"] == "Memory"
        memory = container["resources"]["limits"]["memory"]
        shared, whole = (
            int(size.removesuffix("Gi")) for size in (volume["emptyDir"]["sizeLimit"], memory)
        )
        assert 0.3 * whole <= shared < whole


def test_kuberays_own_probes_command_and_ports_are_left_to_it(full):
    for spec in pods(full):
        own = {"livenessProbe", "readinessProbe", "startupProbe", "command", "args", "ports"}
        assert not own & spec["containers"][0].keys()
        assert "initContainers" not in spec


def test_gpus_are_asked_for_on_workers_alone(full):
    job = next(d for d in full if d["kind"] == "RayJob")["spec"]["rayClusterSpec"]
    head = job["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    fixed, rollout = job["workerGroupSpecs"]
    assert (fixed["minReplicas"], fixed["maxReplicas"]) == (2, 2)
    assert (rollout["minReplicas"], rollout["maxReplicas"]) == (0, 2)
    for group in (fixed, rollout):
        container = group["template"]["spec"]["containers"][0]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"


def test_a_run_that_is_stopped_has_time_for_its_checkpoint():
    job = custom({"gpus": 8}, ["checkpoint_s=900"])["RayJob"]["spec"]["rayClusterSpec"]
    templates = [job["headGroupSpec"]["template"], job["workerGroupSpecs"][0]["template"]]
    for template in templates:
        (container,) = template["spec"]["containers"]
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command[-2:] == ["--within", "900"]
        assert ("--stop" in command) == (container["name"] == "ray-head")
        assert template["spec"]["terminationGracePeriodSeconds"] > 900
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert env["RAY_JOB_STOP_WAIT_TIME_S"] == "900"


def test_only_the_autoscaler_gets_a_token_of_kubernetes(full):
    cluster = next(d for d in full if d["kind"] == "RayCluster")["spec"]
    mounted = {mount["name"] for mount in cluster["autoscalerOptions"]["volumeMounts"]}
    head = cluster["headGroupSpec"]["template"]["spec"]
    tokens = {
        volume["name"]
        for volume in head["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        if "serviceAccountToken" in source
    }
    assert tokens == mounted
    assert not tokens & {mount["name"] for mount in head["containers"][0]["volumeMounts"]}


def test_secrets_are_named_and_never_held(full):
    assert not any(document["kind"] == "Secret" for document in full)
    text = json.dumps(full)
    head = pods([d for d in full if d["kind"] == "RayService"])[0]["containers"][0]
    (token,) = [entry for entry in head["env"] if entry["name"] == TOKEN_ENV]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "veripo-verifier-token", "key": "token"}
    assert '"secretKeyRef": {"name": "redis-password", "key": "password"}' in text
    assert '"envFrom": [{"secretRef": {"name": "storage-keys"}}]' in text
    assert '"authOptions": {"mode": "token", "secretName": "ray-token"}' in text


def test_what_must_be_there_before_is_told():
    texts = render(read({"gpus": 16}, FULL))
    for name in ("ray-token", "redis-password", "storage-keys"):
        assert all(f"# Wants the Secret {name} (" in text for text in texts.values())
    told = "# Wants the Secret veripo-verifier-token ("
    assert [told in texts[f"{kind}.yaml"] for kind in ("job", "cluster", "service")] == [0, 0, 1]


def test_pods_run_the_ray_that_is_installed(full):
    clusters = [str(d) for d in full if d["kind"] in CUSTOM]
    assert all(f"'rayVersion': '{version('ray')}'" in text for text in clusters)


# --- what stands beside


def test_the_network_policy_lets_in_the_runs_own_pods_the_operator_and_prometheus_alone(full):
    policies = [d for d in full if d["kind"] == "NetworkPolicy"]
    assert len(policies) == 3
    for policy in policies:
        spec = policy["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        own, operator, metrics, *clients = spec["ingress"]
        assert own == {"from": [{"podSelector": spec["podSelector"]}]}
        named = operator["from"][0]["podSelector"]["matchLabels"]
        assert named == {"app.kubernetes.io/name": "kuberay-operator"}
        assert 8265 in {port["port"] for port in operator["ports"]}
        assert 8080 in {port["port"] for port in metrics["ports"]}
        assert bool(clients) == policy["metadata"]["name"].endswith("-verifier")
        ports = {port["port"] for rule in spec["egress"] for port in rule.get("ports", [])}
        assert {53, 443, 6379} <= ports  # DNS, storage, Redis
        selected = spec["podSelector"]["matchLabels"].items()
        kinds = {"veripo": "RayJob", "veripo-dev": "RayCluster", "veripo-verifier": "RayService"}
        ray = next(d for d in full if d["kind"] == kinds[policy["metadata"]["name"]])
        labels = list(_labels(ray["spec"]))
        assert labels
        assert all(selected <= found.items() for found in labels)


def _labels(node: Any) -> Iterator[dict[str, str]]:
    """Of the pod templates below."""
    if isinstance(node, dict):
        if "labels" in node.get("metadata", {}):
            yield node["metadata"]["labels"]
        for value in node.values():
            yield from _labels(value)
    elif isinstance(node, list):
        for value in node:
            yield from _labels(value)


def test_runs_and_features_are_in_the_claim(full):
    claims = [d for d in full if d["kind"] == "PersistentVolumeClaim"]
    assert {claim["metadata"]["name"] for claim in claims} == {"veripo-runs"}
    assert claims[0]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claims[0]["spec"]["resources"]["requests"]["storage"] == "500Gi"
    job = next(d for d in full if d["kind"] == "RayJob")["spec"]
    assert "--output /data/runs/veripo " in job["entrypoint"]
    spec = job["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    mounts = {m["mountPath"]: m for m in spec["containers"][0]["volumeMounts"]}
    assert mounts["/models"]["readOnly"]
    assert {"/data", "/videos"} <= mounts.keys()


def test_runs_in_object_storage_need_no_claim():
    found = documents({"gpus": 8, "storage": "s3://bucket/runs"}, [])
    assert "persistentVolumeClaim" not in json.dumps(found)
    job = next(d for d in found if d["kind"] == "RayJob")["spec"]
    assert "--output s3://bucket/runs/veripo " in job["entrypoint"]


@pytest.mark.parametrize(("gpus", "device"), [(8, "cuda"), (0, "cpu")])
def test_the_recipe_travels_whole_and_its_device_is_that_of_the_workers(tmp_path, gpus, device):
    found = documents({"gpus": gpus, "name": "night"}, ["recipe.seed=7"])
    recipes = [d for d in found if d["kind"] == "ConfigMap"]
    assert [d["metadata"]["name"] for d in recipes] == ["night-recipe", "night-dev-recipe"]
    path = tmp_path / "recipe.yaml"
    path.write_text(recipes[0]["data"]["recipe.yaml"])
    run = recipe.load(path)
    assert (run.seed, run.device) == (7, device)
    assert run.loop == recipe.load("quickstart").loop
    job = next(d for d in found if d["kind"] == "RayJob")["spec"]
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = [v for v in head["volumes"] if "configMap" in v]
    assert volume["configMap"]["name"] == "night-recipe"
    assert job["entrypoint"].split()[4] == "/etc/veripo/recipe.yaml"


def test_the_entrypoint_is_a_command_that_begins_and_then_goes_on(tmp_path, monkeypatch):
    small = ["recipe.data.tinyworld={train: 64, heldout: 8}", "recipe.grpo.questions=32"]
    found = documents({"gpus": 0}, [*small, "recipe.schedule=[grpo]", "job.retries=5"])
    job = next(d for d in found if d["kind"] == "RayJob")["spec"]
    assert job["backoffLimit"] == 5
    told = next(d for d in found if d["kind"] == "ConfigMap")["data"]["recipe.yaml"]
    (tmp_path / "recipe.yaml").write_text(told)
    command = (
        job["entrypoint"].replace("/etc/veripo", str(tmp_path)).replace("/data", str(tmp_path))
    )
    words = [*command.split()[3:], "--dry-run", f"features.cache_dir={tmp_path}"]
    assert command.split()[:3] == ["python", "-m", "veripo_ray"]
    resumed = []
    monkeypatch.setattr(launch, "train", lambda run, *, resume, **_: resumed.append(resume) or 0)
    for begun in (False, True):
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
        folder = tmp_path / "runs" / "veripo"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).touch()
        assert resumed[-1] is begun


def test_ray_serve_takes_the_verifiers_configuration(full):
    config = yaml.safe_load(
        next(d for d in full if d["kind"] == "RayService")["spec"]["serveConfigV2"]
    )
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    assert application["import_path"] == "deployments.verifier:build"
    assert application["args"] == {"max_replicas": 8}
    build(application["args"])
