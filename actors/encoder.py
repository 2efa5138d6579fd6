"""The encoder as a Ray actor: a question's media become features, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from veripo_ray import config
from veripo_ray.policy.media import Features
from veripo_ray.policy.tower import Tower
from veripo_ray.records import Question
from veripo_ray.video.decode import Clip, Decoder


@dataclass(frozen=True, slots=True)
class Receipt:
    """What came of a question's media. clip: its frames, where they were asked for."""

    rows: int
    clip: Clip | None


class Encoder:
    """Hosts the decoder and the frozen tower.

    `encode` is called with num_returns=2: the caller waits for the receipt and passes the features
    on, which never come to it. A returned value outlives this actor.
    """

    def __init__(
        self, checkpoint: str | Path, cfg: config.Video, *, device: str, dtype: config.DType
    ) -> None:
        self.tower = Tower.load(checkpoint, device, getattr(torch, dtype))
        spec = self.tower.policy.spec
        self.decoder = Decoder(cfg, factor=spec.patch * spec.merge)
        self.decodes = self.encodes = 0

    def ping(self) -> int:
        """Answers once the tower is loaded, with the number of clips encoded."""
        return self.encodes

    def encode(
        self, question: Question, keep_clip: bool = False
    ) -> tuple[Receipt, tuple[Features, ...]]:
        """Features of the question's video or images, in the order of the prompt.

        Raises DataError naming a file that cannot be used; nothing else is lost.
        """
        clip = self._clip(question.video) if question.video else None
        images = self.decoder.images(question.images) if question.images else []
        features = [self.tower.encode_clip(clip)] if clip else []
        features += [self.tower.encode_image(image) for image in images]
        self.encodes += len(features)
        rows = sum(item.rows for item in features)
        return Receipt(rows, clip if keep_clip else None), tuple(features)

    def counts(self) -> dict[str, int]:
        """Media decoded without an error, and passed through the tower."""
        return {"decodes": self.decodes, "encodes": self.encodes}

    def _clip(self, path: str) -> Clip:
        clip = self.decoder.clip(path)
        self.decodes += 1
        return clip
