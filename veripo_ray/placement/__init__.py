"""From a recipe and a cluster to a plan: who runs where, and whether it fits. Without Ray or torch.

    run = recipe.load("qwen2_5_vl_7b_8gpu")
    found = plan(run, Cluster.uniform(1, gpus=8, gpu_memory_gb=80), Geometry.of(run.model))
    found.memory(Role.LEARNER).total        # bytes on a rank's GPU
    found.seat(Role.ROLLOUT, 0).node.id     # where worker 0 sits
    max(load.peak for load in found.loads)  # the fullest GPU at its worst moment

`plan` raises ResourceError for what does not fit, with the nearest changes that would as its fix;
`attempt` gives a `Misfit` instead. `run.device` must not be 'auto'. `Geometry.of` reads a
checkpoint's config.json, and knows some models by the name of their folder where that is absent.
"""

from veripo_ray.placement.cluster import Cluster, Node
from veripo_ray.placement.fit import Load
from veripo_ray.placement.geometry import Geometry
from veripo_ray.placement.memory import Memory
from veripo_ray.placement.packing import Placed
from veripo_ray.placement.plan import Misfit, Plan, attempt
from veripo_ray.placement.refusing import plan
from veripo_ray.placement.roles import Bundle, Process, Role, on_gpus

__all__ = [
    "Bundle",
    "Cluster",
    "Geometry",
    "Load",
    "Memory",
    "Misfit",
    "Node",
    "Placed",
    "Plan",
    "Process",
    "Role",
    "attempt",
    "on_gpus",
    "plan",
]
