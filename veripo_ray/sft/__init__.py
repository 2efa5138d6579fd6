"""The cold start: imitate demonstrations, before any reward is needed."""

from veripo_ray.sft.demonstrations import load_demonstrations
from veripo_ray.sft.imitation import Demonstration, Imitator
from veripo_ray.sft.student import Student

__all__ = ["Demonstration", "Imitator", "Student", "load_demonstrations"]
