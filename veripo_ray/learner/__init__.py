"""The learner: GRPO and DPO steps on a policy, over any number of ranks, by DeepSpeed."""

from veripo_ray.learner.examples import TrainGroup, TrainPair
from veripo_ray.learner.learner import Learner

__all__ = ["Learner", "TrainGroup", "TrainPair"]
