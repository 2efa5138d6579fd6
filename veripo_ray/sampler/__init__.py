"""Groups of rollouts from vLLM, under a policy whose weights are replaced in place."""

from veripo_ray.sampler.requests import Sampled, SampleRequest
from veripo_ray.sampler.sampler import CACHE, WEIGHTS, Sampler, State, Stats

__all__ = ["CACHE", "WEIGHTS", "SampleRequest", "Sampled", "Sampler", "State", "Stats"]
