"""What says whether KubeRay would take a manifest: its schemas, and its operator's own rules."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

SCHEMAS = "VERIPO_KUBERAY_SCHEMAS"
CUSTOM = ("RayJob", "RayCluster", "RayService")
_LONGEST = {"RayJob": 47, "RayService": 47, "RayCluster": 53}
# Behind feature gates of KubeRay 1.7 that are closed by default: the operator refuses them.
_GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")


@pytest.fixture(scope="session")
def schemas() -> dict[str, Draft202012Validator]:
    folder = os.environ.get(SCHEMAS)
    if not folder:
        pytest.skip(f"{SCHEMAS} names no folder with KubeRay's schemas")
    files = {kind: Path(folder) / f"{kind}.schema.json" for kind in CUSTOM}
    return {kind: Draft202012Validator(json.loads(f.read_text())) for kind, f in files.items()}


@pytest.fixture(scope="session")
def mistakes(schemas) -> Callable[[dict[str, Any]], list[str]]:
    """Why KubeRay would not take a custom resource: field by field, then rule by rule."""

    def find(document: dict[str, Any]) -> list[str]:
        errors = schemas[document["kind"]].iter_errors(document)
        return [f"{e.json_path}: {e.message}" for e in errors] + list(refused(document))

    return find


def ray_cluster(document: dict[str, Any]) -> dict[str, Any]:
    """The spec of the Ray cluster that a custom resource has in it."""
    spec = document["spec"]
    inside = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    return spec[inside[document["kind"]]] if document["kind"] in inside else spec


def pod_specs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Of every Ray node, the head first."""
    cluster = ray_cluster(document)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def refused(document: dict[str, Any]) -> Iterator[str]:
    """The rules of KubeRay's validation.go that its schemas do not hold, as far as they concern
    fields that are rendered here."""
    kind, name = document["kind"], document["metadata"]["name"]
    if len(name) > _LONGEST[kind] or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"name {name}"
    cluster = ray_cluster(document)
    if "upgradeStrategy" in cluster and kind != "RayCluster":
        yield "upgradeStrategy of a cluster that KubeRay makes"
    yield from (field for field in _GATED if field in cluster)
    yield from _refused_cluster(cluster)
    if kind == "RayJob":
        yield from _refused_job(document["spec"])


def _refused_cluster(cluster: dict[str, Any]) -> Iterator[str]:
    version = tuple(map(int, cluster.get("rayVersion", "0.0").split(".")[:2]))
    if cluster.get("authOptions", {}).get("mode") == "token" and version < (2, 52):
        yield "token of a Ray before 2.52"
    head = cluster["headGroupSpec"]
    if "redis-password" in head["rayStartParams"]:
        yield "redis-password in rayStartParams"
    redis = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}
    if redis & {entry["name"] for entry in head["template"]["spec"]["containers"][0]["env"]}:
        yield "Redis in the environment"
    v2 = cluster.get("autoscalerOptions", {}).get("version") == "v2"
    for group in (head, *cluster["workerGroupSpecs"]):
        if v2 and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield "restartPolicy with autoscaler v2"
    for group in cluster["workerGroupSpecs"]:
        if not 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"replicas of {group['groupName']}"


def _refused_job(spec: dict[str, Any]) -> Iterator[str]:
    if spec["ttlSecondsAfterFinished"] and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    if spec.get("shutdownAfterJobFinishes") and spec.get("deletionStrategy", {}).get(
        "deletionRules"
    ):
        yield "shutdownAfterJobFinishes with deletionRules"
    if spec["submissionMode"] == "SidecarMode" and "submitterPodTemplate" in spec:
        yield "SidecarMode with a submitterPodTemplate"
    if spec.get("activeDeadlineSeconds", 1) <= 0 or spec["backoffLimit"] < 0:
        yield "a time or a count"
