"""A rollout worker as a Ray actor: it fetches features, takes weights and hosts a `Sampler`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from actors.dealing import Dealt, handed_over, requests
from actors.metrics import Worker
from actors.whereabouts import myself
from veripo_ray import config
from veripo_ray.sampler import Sampled, Sampler
from veripo_ray.storage import here
from veripo_ray.weights import Manifest, Snapshot

log = logging.getLogger(__name__)


class RolloutWorker:
    """Hosts one vLLM engine. Call `sample` with num_returns="streaming".

    Features come as references inside a list, so that Ray hands them over unresolved and they are
    fetched here when their turn comes, without a copy where they lie on this node.
    """

    def __init__(
        self,
        checkpoint: str,
        cfg: config.Rollout,
        *,
        device: str = "cpu",
        seed: int = 0,
        version: int = 0,
        tower: bool = False,
        lora: config.Lora | None = None,
        sleeps: bool = False,
        transport: config.TransportName = "object_store",
    ) -> None:
        self.worker = Worker(myself("rollout"))
        self.sampler = Sampler(
            here(checkpoint),
            cfg,
            device=device,
            seed=seed,
            version=version,
            tower=tower,
            lora=lora,
            sleeps=sleeps,
            transport=transport,
        )

    def ping(self) -> int:
        """Answers once the engine is up, with the version of its weights."""
        return self.sampler.version

    def version(self) -> int:
        return self.sampler.version

    def sample(
        self,
        share: Sequence[Dealt],
        dealer: Any = None,
        name: str = "",
        *,
        hold_s: float = 0.0,
        **sampling: Any,
    ) -> Iterator[list[Sampled]]:
        """Yield the questions' groups as they finish; `sampling` is that of `Sampler.steps`.

        share: questions to begin with; hold_s: longest time that a group waits for others to be
        yielded with; dealer: who has more of them for the sampling `name`, see
        `actors.dealing`. Equal questions in equal order and a seed give equal groups; with
        `seed_each` a question gives an equal group whoever asks it, and when.
        """
        asked = requests(share, dealer, name)
        yield from self.worker.sampling(
            asked, lambda timed: handed_over(self.sampler.steps(timed, **sampling), hold_s)
        )

    # --- weights: see `actors.syncing`

    def begin_update(self, manifest: Manifest) -> None:
        self.worker.begins()
        self.sampler.begin_update(manifest)

    def take(self, bucket: Snapshot) -> None:
        """Give a bucket as a reference of its own, so that Ray fetches it while others load."""
        self.sampler.take(bucket)

    def receive(self, told: Mapping[str, Any]) -> None:
        self.sampler.receive(told)

    def finish_update(self) -> int:
        """Returns the version of the weights that are sampled from now on."""
        self.sampler.finish_update()
        log.info("weights of version %d", self.sampler.version)
        return self.sampler.version

    def connect(self, info: Mapping[str, Any]) -> None:
        self.sampler.connect(info)

    def disconnect(self) -> None:
        self.sampler.disconnect()

    def sleep(self, level: int) -> None:
        """See `Sampler.sleep`."""
        self.sampler.sleep(level)

    def wake(self, tags: Sequence[str]) -> None:
        """See `Sampler.wake`."""
        self.sampler.wake(tags)

    def stats(self) -> dict[str, float]:
        """Groups, tokens and seconds of sampling so far: see `veripo_ray.sampler.Stats`."""
        return asdict(self.sampler.stats)
