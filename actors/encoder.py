"""The encoder as a Ray actor: the media of a question go in, their features come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray

from actors.metrics import Worker, measured
from veripo_ray import config
from veripo_ray.errors import DataError
from veripo_ray.features import FeatureSource
from veripo_ray.policy.media import Media
from veripo_ray.records import Question
from veripo_ray.video.decode import Clip

WAITING = 2  # calls at once beyond those that decode: for the tower, and for the cache
# Ray puts results below this size into the memory of the caller, which here is the coordinator. So
# that it holds no features, however small, only what is no more than a number may go there.
_INLINE = {"RAY_max_direct_call_object_size": "1000"}


class Encoder:
    """Hosts a `FeatureSource`. It is fast when it is called many times at once.

    Features are returned, not put: what an actor returns outlives it.
    """

    @classmethod
    def actor(cls, cfg: config.Features, **seat: Any) -> Any:
        """The class as Ray is to start it; seat: options that say where, and with what."""
        return ray.remote(concurrency_groups={"asking": 1})(cls).options(
            max_concurrency=cfg.decoders + WAITING,
            runtime_env={"env_vars": _INLINE},
            **{"num_cpus": cfg.decoders, **seat},
        )

    def __init__(
        self,
        checkpoint: str,
        video: config.Video,
        cfg: config.Features,
        device: str = "cpu",
        *,
        frames: bool = False,
    ) -> None:
        self.worker = Worker("encoder")
        self.source = FeatureSource(checkpoint, video, cfg, device, frames=frames)

    def store_bytes(self) -> float:
        """Size of the object store of this node, where features stay until they are let go."""
        here = ray.get_runtime_context().get_node_id()
        (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
        return node["Resources"].get("object_store_memory", 0.0)

    def ping(self) -> dict[str, int]:
        """Answers once the tower is loaded."""
        return self.counts()

    @measured
    def encode(
        self, questions: Sequence[Question]
    ) -> tuple[list[int | DataError], *tuple[tuple[Media, ...], ...]]:
        """For each question the bytes of its media, or a DataError naming the file that cannot be
        used; then for each question the features (or frames) of its video and of each image.

        Call it with num_returns=1 + len(questions): who awaits the first knows which of the others
        are there, without fetching them.
        """
        made = [self._media_or_error(question) for question in questions]
        self.worker.media(self.counts())
        found = [() if isinstance(media, DataError) else media for media in made]
        sizes = [
            media if isinstance(media, DataError) else sum(item.nbytes for item in media)
            for media in made
        ]
        return sizes, *found

    def _media_or_error(self, question: Question) -> tuple[Media, ...] | DataError:
        try:
            return self.source.of(question)
        except DataError as error:
            return error

    @ray.method(concurrency_group="asking")
    def film(self, question: Question) -> Clip | None:
        """Some frames of the question's video, ahead of what waits to be encoded."""
        return self.source.film(question)

    @ray.method(concurrency_group="asking")
    def counts(self) -> dict[str, int]:
        """See `veripo_ray.features.Counts`. Ahead of what waits to be encoded."""
        return asdict(self.source.counts())
