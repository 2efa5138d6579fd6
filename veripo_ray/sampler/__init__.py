"""Groups of rollouts from vLLM, under a policy whose weights are replaced in place."""

from veripo_ray.sampler.requests import Sampled, SampleRequest
from veripo_ray.sampler.sampler import Sampler, State, Stats

__all__ = ["SampleRequest", "Sampled", "Sampler", "State", "Stats"]
