"""The reference as a Ray actor: shards of pairs go in, the same shards with its scores come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import ray

from actors.learner import named, pack
from actors.metrics import Worker, measured
from veripo_ray import codec, config
from veripo_ray.records import Group, Pair
from veripo_ray.reference import ReferencePolicy
from veripo_ray.storage import here


class Reference:
    """Hosts a `ReferencePolicy`. References to weights and features come nested in a list or a
    mapping, so that Ray hands them over unresolved and they are fetched here, without a copy."""

    def __init__(
        self,
        checkpoint: str,
        cfg: config.Learner,
        *,
        device: str = "cpu",
        temperature: float = 1.0,
        rests: bool = False,
    ) -> None:
        self.worker = Worker("reference")
        self.policy = ReferencePolicy(
            here(checkpoint), cfg, device=device, temperature=temperature, rests=rests
        )

    def ping(self) -> int:
        """Answers once the model is loaded, with the version of its weights."""
        return self.policy.version

    @measured
    def load_weights(self, version: int, weights: Sequence[ray.ObjectRef]) -> int:
        """Take the learner's weights (one reference in a list); returns their version."""
        self.policy.load_weights(version, ray.get(weights[0]))
        return version

    @measured
    def attach(self, shard: np.ndarray, features: Mapping[str, ray.ObjectRef]) -> np.ndarray:
        """shard: uint8 msgpack of Pairs; features: references by pair id. Returns the shard with
        every `reference_logprob`. Idempotent: a retried call gives the same bytes."""
        pairs = codec.unpack_many(shard.data, Pair)
        fetched = ray.get([features[pair.id] for pair in pairs])
        media = {pair.id: value for pair, value in zip(pairs, fetched, strict=True)}
        return codec.to_array(codec.pack_many(self.policy.attach(pairs, media)))

    @measured
    def reference_logprobs(
        self, groups: Sequence[Group], features: Mapping[str, ray.ObjectRef]
    ) -> dict[str, list[np.ndarray]]:
        """Log-probabilities of every rollout, by group id (GRPO's optional KL term)."""
        packed = [pack(group, ray.get(features[group.id])) for group in groups]
        return named(groups, self.policy.logprobs(packed))
