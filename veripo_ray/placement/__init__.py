"""From a recipe and a cluster to a plan: who runs where. Without Ray."""

from veripo_ray.placement.cluster import Cluster, Node
from veripo_ray.placement.packing import Placed
from veripo_ray.placement.plan import Plan, plan
from veripo_ray.placement.roles import Bundle, Process, Role, on_gpus

__all__ = ["Bundle", "Cluster", "Node", "Placed", "Plan", "Process", "Role", "on_gpus", "plan"]
