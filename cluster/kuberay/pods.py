"""The pods of every manifest: head, workers and the submitter of a job.

Probes, ports, the command, the token and Redis' address are KubeRay's own business: it adds them
where a template leaves them out, and a template that sets them turns its checks off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.kuberay.values import Pod, Values
from deployments.env import PROXY_ENV

Part = dict[str, Any]

DATA, CACHE, RECIPE = "/data", "/cache", "/etc/veripo"
USER = 1000  # of the image
INSTANCE = "app.kubernetes.io/instance"
_LEAVE = ["python", "-m", "cluster.kuberay.leave"]


@dataclass(frozen=True, slots=True)
class Role:
    """What sets one group of pods apart from the others. instance: the manifest they belong to."""

    container: str
    pod: Pod
    instance: str
    ends_within_s: int
    gpus: int = 0
    env: Mapping[str, str | Part] = field(default_factory=dict)  # a value, or where it comes from
    selector: Mapping[str, str] = field(default_factory=dict)
    data: bool = False  # whether runs are mounted
    recipe: bool = False  # whether the recipe is
    before_end: tuple[str, ...] = ()  # what its container runs when it is to end


def training(values: Values, instance: str, *, head: bool) -> Role:
    """A node of a cluster that trains. Its end waits: see cluster/kuberay/leave.py."""
    wait = [*_LEAVE, *(["--stop"] if head else []), "--within", str(values.checkpoint_s)]
    return Role(
        "ray-head" if head else "ray-worker",
        values.head if head else values.worker_pod,
        instance,
        ends_within_s=values.checkpoint_s + 30,
        gpus=0 if head else values.gpus_a_node,
        # From the SIGTERM of `ray job stop` to the SIGKILL; by default 3 seconds.
        env={"RAY_JOB_STOP_WAIT_TIME_S": str(values.checkpoint_s)},
        selector={} if head else values.node_selector,
        data=True,
        recipe=head,
        before_end=tuple(wait),
    )


def template(values: Values, role: Role) -> Part:
    """A pod template of a Ray node."""
    volumes = _volumes(values, role)
    container: Part = {
        "name": role.container,
        "image": values.image,
        "resources": resources(values, role.pod, role.gpus),
        "securityContext": confined(),
        "env": _environment(role),
        "volumeMounts": [mount for _, mount in volumes],
    }
    if values.env_secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in values.env_secrets]
    if role.before_end:
        container["lifecycle"] = {"preStop": {"exec": {"command": list(role.before_end)}}}
    spec = _spec(values, container) | {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": role.ends_within_s,
        "volumes": [volume for volume, _ in volumes],
    }
    if role.gpus:  # the taint that GPU nodes commonly bear
        toleration = {"key": values.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}
        spec["tolerations"] = [toleration]
    if role.selector:
        spec["nodeSelector"] = dict(role.selector)
    return {"metadata": {"labels": labels(role.instance)}, "spec": spec}


def submitter(values: Values, instance: str) -> Part:
    """The pod that runs `ray job submit`: KubeRay's own would not be confined."""
    container = {
        "name": "ray-job-submitter",
        "image": values.image,
        "resources": resources(values, Pod(cpus=1, memory_gb=2), 0),
        "securityContext": confined(),
    }
    spec = _spec(values, container)
    spec |= {"automountServiceAccountToken": False, "restartPolicy": "Never"}
    return {"metadata": {"labels": labels(instance)}, "spec": spec}


def labels(instance: str) -> dict[str, str]:
    """Of a pod and what belongs to it; a label since the names of clusters are KubeRay's."""
    return {INSTANCE: instance, "app.kubernetes.io/part-of": "veripo-ray"}


def resources(values: Values, pod: Pod, gpus: int) -> Part:
    amounts: Part = {"cpu": str(pod.cpus), "memory": f"{pod.memory_gb}Gi"}
    if gpus:
        amounts[values.gpu_resource] = str(gpus)
    return {"requests": amounts, "limits": dict(amounts)}


def confined() -> Part:
    """A container that cannot gain a right."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _spec(values: Values, container: Part) -> Part:
    spec: Part = {
        "containers": [container],
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if values.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in values.image_pull_secrets]
    return spec


def _environment(role: Role) -> list[Part]:
    common = {"XDG_CACHE_HOME": CACHE, "RAY_USAGE_STATS_ENABLED": "0", **PROXY_ENV}
    return [
        {"name": name, "value": value} if isinstance(value, str) else {"name": name, **value}
        for name, value in {**common, **role.env}.items()
    ]


def _volumes(values: Values, role: Role) -> list[tuple[Part, Part]]:
    """Each volume with its mount."""
    memory = {"medium": "Memory", "sizeLimit": f"{role.pod.shm_gb}Gi"}
    found = [_volume("shared-memory", "/dev/shm", emptyDir=memory)]
    found.append(_volume("cache", CACHE, emptyDir={}))
    if role.data and values.claim:
        found.append(_volume("data", DATA, persistentVolumeClaim={"claimName": values.claim}))
    for number, (claim, folder) in enumerate(values.read_only.items()):
        source = {"claimName": claim, "readOnly": True}
        volume, mount = _volume(f"read-only-{number}", folder, persistentVolumeClaim=source)
        found.append((volume, mount | {"readOnly": True}))
    if role.recipe:
        volume, mount = _volume("recipe", RECIPE, configMap={"name": f"{role.instance}-recipe"})
        found.append((volume, mount | {"readOnly": True}))
    return found


def _volume(name: str, path: str, **source: Part) -> tuple[Part, Part]:
    return {"name": name, **source}, {"name": name, "mountPath": path}
