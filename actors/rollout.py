"""A rollout worker as a Ray actor: questions go in as references, finished groups stream out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import ray

from veripo_ray import config
from veripo_ray.sampler import Sampled, Sampler, SampleRequest, Stats


class RolloutWorker:
    """Hosts a `Sampler`. References to features and weights come nested in a list, so that Ray
    hands them over unresolved and they are fetched here, without a copy."""

    def __init__(
        self, checkpoint: str | Path, cfg: config.Rollout, *, device: str, seed: int, version: int
    ) -> None:
        self.sampler = Sampler(checkpoint, cfg, device=device, seed=seed, version=version)

    def ping(self) -> int:
        """Answers once the engine is up, with the version of its weights."""
        return self.sampler.version

    def sample(
        self,
        ids: Sequence[str],
        prompts: Sequence[np.ndarray],
        features: Sequence[ray.ObjectRef],
        *,
        n: int,
        temperature: float,
        max_tokens: int,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[Sampled]:
        """Groups as they finish (called with num_returns="streaming"); see `Sampler.sample`."""
        requests = (
            SampleRequest(id_, prompt, ray.get(reference))
            for id_, prompt, reference in zip(ids, prompts, features, strict=True)
        )
        yield from self.sampler.sample(
            requests,
            n=n,
            temperature=temperature,
            max_tokens=max_tokens,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )

    def load_weights(self, version: int, weights: Sequence[ray.ObjectRef]) -> int:
        """Take a snapshot (one reference in a list) as `version`; see `Sampler.load_weights`."""
        self.sampler.load_weights(version, ray.get(weights[0]))
        return version

    def stats(self) -> Stats:
        return self.sampler.stats
