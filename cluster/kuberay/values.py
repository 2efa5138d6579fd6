"""Everything that can be chosen about the manifests, typed, with its default; checked whole."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from deployments import settings as verifier
from veripo_ray import __version__
from veripo_ray.config import Count, Positive, Settings, wants_vllm
from veripo_ray.errors import ConfigError

# KubeRay appends to the names of a RayJob and a RayService, this project "-verifier" and "-dev".
Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=38)]
Existing = Annotated[str, Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=253)]
Folder = Annotated[str, Field(pattern=r"^/[-./\w]*\w$")]
Port = Annotated[int, Field(ge=1, le=65_535)]
_STORAGE = re.compile(
    r"pvc:(?P<claim>[a-z0-9]([-.a-z0-9]*[a-z0-9])?)|(?P<url>(s3|gs|az|abfs)://[-./\w]+)"
)
_CPUS_A_GPU, _MEMORY_GB_A_GPU, _MOST_GPUS = 8, 64, 8


class Pod(Settings):
    """What a pod may use: requested and limited alike, since Ray takes the limit for what it has
    and Kubernetes evicts first what uses more than it requested."""

    cpus: Count = 8
    memory_gb: Count = 32
    shared_memory_gb: Count | None = Field(
        None, description="of the memory, for the object store and NCCL; None: two fifths"
    )

    @property
    def shm_gb(self) -> int:
        """Ray's object store takes three tenths of the memory; the rest is for NCCL and torch."""
        return self.shared_memory_gb or math.ceil(self.memory_gb * 0.4)


class Rollout(Settings):
    """GPU nodes beside the fixed ones, for rollout workers, as Ray's autoscaler wants them."""

    min_nodes: Annotated[int, Field(ge=0)] = 0
    max_nodes: Annotated[int, Field(ge=0)] = 0


class Job(Settings):
    """How often and how long a run is tried."""

    retries: Annotated[int, Field(ge=0)] = Field(
        3, description="new clusters after a failure; each resumes from the last checkpoint"
    )
    start_minutes: Positive = Field(60.0, description="until all pods must be there")
    deadline_hours: Positive | None = Field(None, description="of all attempts; None: none")
    ttl_s: Annotated[int, Field(ge=0)] = Field(600, description="the cluster outlives the run")


class Redis(Settings):
    """Where the head keeps its state, so that it can restart while the cluster goes on."""

    address: Annotated[str, Field(pattern=r"^(redis://|rediss://)?[-.\w]+:\d+$")]
    password_secret: Existing | None = Field(None, description="a Secret with the key `password`")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


class Network(Settings):
    """Who may connect to the pods, and where to these may connect."""

    enabled: bool = True
    operator_namespace: Existing | None = Field(
        None, description="of KubeRay's operator; None: pods with its name in any namespace"
    )
    metrics_namespace: Existing = Field("monitoring", description="of Prometheus")
    clients: tuple[Existing, ...] = Field(
        (), description="namespaces that may ask the verifier, beside its own"
    )
    egress_ports: tuple[Port, ...] = Field(
        (443,), description="TCP, to anywhere; DNS, the run's own pods and Redis are added"
    )


class Verifier(Settings):
    """The verifier as a service of its own."""

    args: dict[str, Any] = Field(
        default_factory=dict, description="deployments.settings.Args that differ from defaults"
    )
    min_nodes: Count = 1
    max_nodes: Count = 1
    pod: Pod = Pod(cpus=8, memory_gb=16)
    gpus: Annotated[int, Field(ge=0)] = Field(0, description="a node, for the judge `vllm`")
    token_secret: Existing | None = Field(
        None, description="a Secret with the key `token`; None: NAME-verifier-token"
    )


class Values(Settings):
    """What `veripo manifests` takes: options, a file by --values, and KEY=VALUE."""

    name: Name = "veripo"
    namespace: Name | None = None
    image: str = Field(f"veripo-ray:{__version__}", description="made by the Dockerfile beside")
    image_pull_secrets: tuple[Existing, ...] = ()

    gpus: Annotated[int, Field(ge=0)] = Field(8, description="of the fixed nodes; 0: CPU nodes")
    gpus_per_node: Count | None = Field(None, description="None: all of them, at most 8")
    gpu_resource: str = "nvidia.com/gpu"
    cpu_nodes: Count = Field(1, description="fixed nodes where gpus = 0")
    rollout: Rollout = Rollout()
    head: Pod = Pod()
    worker: Pod | None = Field(None, description="None: 8 CPUs and 64 GB a GPU")
    node_selector: dict[str, str] = Field(default_factory=dict, description="of worker pods")

    storage: str = Field(
        "pvc:veripo-runs", description="runs and caches: pvc:CLAIM, or s3://, gs://, az://, abfs://"
    )
    storage_gb: Count | None = Field(None, description="render the claim, too, of this size")
    storage_class: Existing | None = None
    read_only: dict[Existing, Folder] = Field(
        default_factory=dict, description="claims with models and videos, and where to mount them"
    )
    env_secrets: tuple[Existing, ...] = Field(
        (), description="Secrets whose keys become environment variables: storage, W&B, a hub"
    )
    auth_secret: Existing | None = Field(
        None, description="a Secret with the key `auth_token`; None: KubeRay makes one a cluster"
    )
    redis: Redis | None = None
    network: Network = Network()
    checkpoint_s: Count = Field(600, description="a run that is stopped has to write a checkpoint")

    recipe: str = "quickstart"
    settings: tuple[str, ...] = Field((), description="KEY=VALUE laid over the recipe")
    job: Job = Job()
    verifier: Verifier = Verifier()

    @property
    def claim(self) -> str | None:
        """The persistent volume claim of runs and caches; None where they are objects."""
        return _storage(self.storage).group("claim")

    @property
    def gpus_a_node(self) -> int:
        return self.gpus_per_node or min(self.gpus, _MOST_GPUS)

    @property
    def fixed_nodes(self) -> int:
        return self.gpus // self.gpus_a_node if self.gpus else self.cpu_nodes

    @property
    def worker_pod(self) -> Pod:
        count = self.gpus_a_node
        if self.worker or not count:
            return self.worker or Pod()
        return Pod(cpus=_CPUS_A_GPU * count, memory_gb=_MEMORY_GB_A_GPU * count)

    @property
    def scales(self) -> bool:
        """Whether Ray's autoscaler adds and removes nodes of a training cluster."""
        return self.rollout.max_nodes > self.rollout.min_nodes

    @field_validator("storage")
    @classmethod
    def _known_storage(cls, value: str) -> str:
        return _storage(value).group()

    @field_validator("image")
    @classmethod
    def _pinned(cls, value: str) -> str:
        tag = value.rpartition("/")[2].partition(":")[2]
        if value.split() != [value] or (tag in ("", "latest") and "@sha256:" not in value):
            raise ValueError(
                f"{value!r} names no fixed version, so two attempts of a run may differ; "
                "add a tag other than latest, or a digest"
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [*_node_problems(self), *_pod_problems(self), *_other_problems(self)]
        problems += _verifier_problems(self)
        if problems:
            raise ValueError("\n  ".join(problems))
        return self


def _storage(value: str) -> re.Match[str]:
    found = _STORAGE.fullmatch(value)
    if found is None:
        raise ValueError(f"{value!r} is no storage; write pvc:CLAIM or s3://BUCKET/FOLDER")
    return found


def _node_problems(values: Values) -> list[str]:
    problems = []
    gpus, each = values.gpus, values.gpus_a_node
    if gpus and gpus % each:
        problems.append(
            f"gpus = {gpus} is not a multiple of gpus_per_node = {each}; make it "
            f"{-(-gpus // each) * each}, or change gpus_per_node"
        )
    for where, nodes in (("rollout", values.rollout), ("verifier", values.verifier)):
        if nodes.max_nodes < nodes.min_nodes:
            problems.append(
                f"{where}.max_nodes = {nodes.max_nodes} is less than {where}.min_nodes = "
                f"{nodes.min_nodes}; raise it"
            )
    if values.rollout.max_nodes and not gpus:
        problems.append(
            f"rollout.max_nodes = {values.rollout.max_nodes} adds GPU nodes, but gpus = 0; "
            "raise gpus, or cpu_nodes instead"
        )
    return problems


def _pod_problems(values: Values) -> list[str]:
    pods = {"head": values.head, "worker": values.worker_pod, "verifier.pod": values.verifier.pod}
    return [
        f"{where}.shared_memory_gb = {pod.shm_gb} is not less than {where}.memory_gb = "
        f"{pod.memory_gb}, which holds it; lower it"
        for where, pod in pods.items()
        if pod.shm_gb >= pod.memory_gb
    ]


def _other_problems(values: Values) -> list[str]:
    problems = []
    if values.storage_gb and values.claim is None:
        problems.append(
            f"storage_gb = {values.storage_gb} is the size of a claim, but storage = "
            f"{values.storage}; leave it out, or set storage=pvc:CLAIM"
        )
    taken = ("/data", "/cache", "/etc/veripo", "/dev/shm", "/tmp")
    for claim, folder in values.read_only.items():
        if folder in taken or list(values.read_only.values()).count(folder) > 1:
            problems.append(f"read_only.{claim} = {folder} is taken; choose another folder")
    return problems


def _verifier_problems(values: Values) -> list[str]:
    chosen = values.verifier
    try:
        args = verifier.read(chosen.args)
    except ConfigError as error:
        return [f"verifier.args: {error.problem}; {error.fix}"]
    problems = []
    if args.token_env is not None:
        problems.append(
            f"verifier.args.token_env = {args.token_env} is the manifest's to set; name the Secret "
            "by verifier.token_secret"
        )
    replicas, cpus = args.max_replicas or args.replicas, chosen.max_nodes * chosen.pod.cpus
    gpus = chosen.max_nodes * chosen.gpus
    names = [args.judge, *([args.heldout] if args.heldout else [])]
    if any(wants_vllm(name, args.judges) for name in names):
        model = args.judges.vllm
        cpus -= math.ceil(model.replicas * model.cpus)
        if gpus < model.replicas * model.gpus:
            problems.append(
                f"verifier.gpus = {chosen.gpus} on verifier.max_nodes = {chosen.max_nodes} is less "
                f"than the judge's model needs: {model.replicas} x {model.gpus:g}; raise it"
            )
    if replicas > cpus:
        problems.append(
            f"verifier.args.replicas: {replicas} replicas need a CPU each, verifier.max_nodes = "
            f"{chosen.max_nodes} of verifier.pod.cpus = {chosen.pod.cpus} leave {cpus}; raise them"
        )
    return problems
