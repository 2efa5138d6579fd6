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
from veripo_ray.weights import Manifest, Snapshot


class Reference:
    """Hosts a `ReferencePolicy`. References to features come nested in a mapping, so that Ray hands
    them over unresolved and they are fetched here, without a copy."""

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

    # --- weights: see `actors.syncing`

    def begin_update(self, manifest: Manifest) -> None:
        self.policy.begin_update(manifest)

    @measured
    def take(self, bucket: Snapshot) -> None:
        self.policy.take(bucket)

    @measured
    def finish_update(self) -> int:
        """Returns the version of the weights that score from now on."""
        self.policy.finish_update()
        return self.policy.version

    # --- scores

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
