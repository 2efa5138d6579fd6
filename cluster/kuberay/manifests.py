"""RayJob, RayCluster and RayService, and what stands beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import yaml

from cluster.kuberay import pods
from cluster.kuberay.pods import DATA, RECIPE, Part, Role
from cluster.kuberay.values import Pod, Values
from deployments import settings as verifier_settings
from veripo_ray.verifier.client import TOKEN_ENV

KUBERAY = "1.7"  # whose fields these are
RECIPE_FILE = "recipe.yaml"
_IDLE_S = 300
_SERVE_PORT, _DASHBOARD_PORT, _METRICS_PORTS = 8000, 8265, (8080, 44217, 44227)
_API_PORTS = (443, 6443)
_API_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


def job(values: Values, recipe: str) -> list[Part]:
    """A run from beginning to end on a cluster of its own; `recipe`: its text."""
    chosen, name = values.job, values.name
    spec: Part = {
        "entrypoint": f"python -m veripo_ray train {RECIPE}/{RECIPE_FILE} "
        f"--output {output(values)} --resume-if-begun",
        "submissionMode": "K8sJobMode",
        "submitterPodTemplate": pods.submitter(values, name),
        "submitterConfig": {"backoffLimit": 2},
        "backoffLimit": chosen.retries,
        "preRunningDeadlineSeconds": round(chosen.start_minutes * 60),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": chosen.ttl_s,
        "rayClusterSpec": _training(values, name),
    }
    if chosen.deadline_hours:
        spec["activeDeadlineSeconds"] = round(chosen.deadline_hours * 3600)
    return [*_beside_training(values, name, recipe), _custom(values, "RayJob", name, spec)]


def cluster(values: Values, recipe: str) -> list[Part]:
    """The same cluster for work in progress: it stays, and takes jobs."""
    name = f"{values.name}-dev"
    spec = _training(values, name) | {"upgradeStrategy": {"type": "Recreate"}}
    return [*_beside_training(values, name, recipe), _custom(values, "RayCluster", name, spec)]


def service(values: Values) -> list[Part]:
    """The verifier alone, behind a Service that KubeRay keeps."""
    name = f"{values.name}-verifier"
    spec: Part = {
        "serveConfigV2": yaml.safe_dump(_serve_config(values), sort_keys=False),
        "excludeHeadPodFromServeSvc": True,
        "rayClusterConfig": _serving(values, name),
    }
    objects = [_custom(values, "RayService", name, spec)]
    return [*_network_policy(values, name, serves=True), *objects]


def output(values: Values) -> str:
    """The run's folder, as the pods see it."""
    root = f"{DATA}/runs" if values.claim else values.storage.rstrip("/")
    return f"{root}/{values.name}"


def secrets(values: Values, kind: str) -> dict[str, str]:
    """The Secrets that must be there before a manifest is applied, and what they hold."""
    found = dict.fromkeys(values.env_secrets, "environment variables, one a key")
    if values.auth_secret:
        found[values.auth_secret] = "auth_token: Ray's token"
    if values.redis and values.redis.password_secret:
        found[values.redis.password_secret] = "password: of Redis"
    if kind == "service":
        found[_token_secret(values)] = f"token: {TOKEN_ENV}, 16 characters or more"
    return found


# --- Ray clusters


def _training(values: Values, name: str) -> Part:
    fixed, extra = values.fixed_nodes, values.rollout
    worker = pods.training(values, name, head=False)
    groups = [_worker_group(values, worker, "fixed", fixed, fixed)]
    if extra.max_nodes:
        groups.append(_worker_group(values, worker, "rollout", extra.min_nodes, extra.max_nodes))
    head = pods.training(values, name, head=True)
    return _ray_cluster(values, head, groups, scales=values.scales)


def _serving(values: Values, name: str) -> Part:
    chosen = values.verifier
    reference = {"secretKeyRef": {"name": _token_secret(values), "key": "token"}}
    env: dict[str, str | Part] = {TOKEN_ENV: {"valueFrom": reference}}
    ends = math.ceil(verifier_settings.read(chosen.args).timeout_s) + 30
    head = Role("ray-head", Pod(cpus=2, memory_gb=8), name, ends, env=env)
    worker = Role("ray-worker", chosen.pod, name, ends, gpus=chosen.gpus, env=env)
    group = _worker_group(values, worker, "verifier", chosen.min_nodes, chosen.max_nodes)
    spec = _ray_cluster(values, head, [group], scales=chosen.max_nodes > chosen.min_nodes)
    spec["headGroupSpec"]["rayStartParams"] = {"num-cpus": "0"}  # no replica where no one asks
    return spec


def _ray_cluster(values: Values, head: Role, groups: list[Part], *, scales: bool) -> Part:
    auth: Part = {"mode": "token"}
    if values.auth_secret:
        auth["secretName"] = values.auth_secret
    spec: Part = {"rayVersion": version("ray"), "authOptions": auth}
    if values.redis:
        spec["gcsFaultToleranceOptions"] = _redis(values)
    template = pods.template(values, head)
    if scales:
        spec |= _autoscaler(values, template, groups)
    spec["headGroupSpec"] = {"rayStartParams": {}, "template": template}
    spec["workerGroupSpecs"] = groups
    return spec


def _worker_group(values: Values, role: Role, name: str, least: int, most: int) -> Part:
    return {
        "groupName": name,
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": pods.template(values, role),
    }


def _redis(values: Values) -> Part:
    assert values.redis is not None
    options: Part = {"redisAddress": values.redis.address}
    if values.redis.password_secret:
        reference = {"name": values.redis.password_secret, "key": "password"}
        options["redisPassword"] = {"valueFrom": {"secretKeyRef": reference}}
    return options


def _autoscaler(values: Values, head: Part, groups: list[Part]) -> Part:
    """Its container alone gets the token of the service account that KubeRay makes for it; v2
    replaces a pod instead of restarting its container."""
    for template in (head, *(group["template"] for group in groups)):
        template["spec"]["restartPolicy"] = "Never"
    head["spec"]["volumes"].append({"name": "api-token", "projected": {"sources": _api_token()}})
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": _IDLE_S,
            "resources": pods.resources(values, Pod(cpus=1, memory_gb=2), 0),
            "securityContext": pods.confined(),
            "volumeMounts": [{"name": "api-token", "mountPath": _API_TOKEN, "readOnly": True}],
        },
    }


def _api_token() -> list[Part]:
    """What Kubernetes itself would mount into every container of the pod."""
    namespace = {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
    authority = [{"key": "ca.crt", "path": "ca.crt"}]
    return [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": authority}},
        {"downwardAPI": {"items": [namespace]}},
    ]


# --- the verifier's application


def _serve_config(values: Values) -> Part:
    args = verifier_settings.read(values.verifier.args)  # dotted names unfolded
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": _SERVE_PORT},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": "verifier",
                "route_prefix": "/",
                "import_path": "deployments.verifier:build",
                "args": args.model_dump(mode="json", exclude_unset=True),
            }
        ],
    }


def _token_secret(values: Values) -> str:
    return values.verifier.token_secret or f"{values.name}-verifier-token"


# --- what stands beside


def _beside_training(values: Values, name: str, recipe: str) -> list[Part]:
    config_map = _object(values, "v1", "ConfigMap", f"{name}-recipe", name)
    objects = [config_map | {"data": {RECIPE_FILE: recipe}}]
    if values.storage_gb and values.claim:
        objects.append(_claim(values, values.claim, name))
    return [*_network_policy(values, name, serves=False), *objects]


def _claim(values: Values, claim: str, name: str) -> Part:
    spec: Part = {
        "accessModes": ["ReadWriteMany"],  # learner ranks on several nodes write into one folder
        "resources": {"requests": {"storage": f"{values.storage_gb}Gi"}},
    }
    if values.storage_class:
        spec["storageClassName"] = values.storage_class
    return _object(values, "v1", "PersistentVolumeClaim", claim, name) | {"spec": spec}


def _network_policy(values: Values, name: str, *, serves: bool) -> list[Part]:
    """KubeRay's own `networkPolicy` is behind a gate that is closed by default."""
    network = values.network
    if not network.enabled:
        return []
    own = {"podSelector": {"matchLabels": {pods.INSTANCE: name}}}
    dashboard = [_DASHBOARD_PORT, *([_SERVE_PORT] if serves else [])]
    ingress = [
        {"from": [own]},
        {"from": [_operator(values)], "ports": _tcp(*dashboard)},
        {"from": [_namespace(network.metrics_namespace)], "ports": _tcp(*_METRICS_PORTS)},
    ]
    if serves:
        clients = [{"podSelector": {}}, *map(_namespace, network.clients)]
        ingress.append({"from": clients, "ports": _tcp(_SERVE_PORT)})
    egress = [
        {"to": [own]},
        {"ports": [{"protocol": "UDP", "port": 53}, *_tcp(53)]},
        {"ports": _tcp(*_egress_ports(values))},
    ]
    spec = {
        "podSelector": own["podSelector"],
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
        "egress": egress,
    }
    policy = _object(values, "networking.k8s.io/v1", "NetworkPolicy", name, name)
    return [policy | {"spec": spec}]


def _egress_ports(values: Values) -> list[int]:
    scales = values.scales or values.verifier.max_nodes > values.verifier.min_nodes
    ports = {*values.network.egress_ports, *(_API_PORTS if scales else ())}
    return sorted(ports | ({values.redis.port} if values.redis else set()))


def _operator(values: Values) -> Part:
    named = {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    where = values.network.operator_namespace
    return {"podSelector": named, "namespaceSelector": {}} | (_namespace(where) if where else {})


def _namespace(name: str) -> Part:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _tcp(*ports: int) -> list[Part]:
    return [{"protocol": "TCP", "port": port} for port in ports]


def _custom(values: Values, kind: str, name: str, spec: Mapping[str, Any]) -> Part:
    return _object(values, "ray.io/v1", kind, name, name) | {"spec": dict(spec)}


def _object(values: Values, api: str, kind: str, name: str, instance: str) -> Part:
    metadata: Part = {"name": name, "labels": pods.labels(instance)}
    if values.namespace:
        metadata["namespace"] = values.namespace
    return {"apiVersion": api, "kind": kind, "metadata": metadata}
