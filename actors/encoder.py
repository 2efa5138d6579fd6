"""The encoder as a Ray actor: the media of a question go in, their features come out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from veripo_ray import config
from veripo_ray.policy.media import Features
from veripo_ray.policy.tower import Tower
from veripo_ray.records import Question
from veripo_ray.video.decode import Clip, Decoder

FILMS = 32  # clips of which frames are kept, for a report to show
FILM_FRAMES = 16


@dataclass(slots=True)
class Counts:
    """What an encoder has done: clips decoded, clips encoded, images decoded and encoded."""

    decodes: int = 0
    encodes: int = 0
    images: int = 0


class Encoder:
    """Hosts a decoder and the frozen vision tower.

    Features are returned, not put: what an actor returns outlives it.
    """

    def __init__(self, checkpoint: str, cfg: config.Video, device: str = "cpu") -> None:
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.tower = Tower.load(checkpoint, device, dtype)
        spec = self.tower.policy.spec
        self.decoder = Decoder(cfg, factor=spec.patch * spec.merge)
        self._counts = Counts()
        self._films: dict[str, Clip] = {}

    def ping(self) -> dict[str, int]:
        """Answers once the tower is loaded."""
        return self.counts()

    def encode(self, question: Question) -> tuple[int, tuple[Features, ...]]:
        """The number of feature rows, and the features of the video, then of each image.

        Call it with num_returns=2: who awaits the first knows that the second is there, or why it
        is not (a DataError naming the file), without fetching it.
        """
        features = self._clips(question) + self._images(question)
        return sum(item.rows for item in features), features

    def _clips(self, question: Question) -> tuple[Features, ...]:
        if question.video is None:
            return ()
        clip = self.decoder.clip(question.video)
        self._counts.decodes += 1
        if len(self._films) < FILMS:
            self._films[question.video] = _thinned(clip)
        features = self.tower.encode_clip(clip)
        self._counts.encodes += 1
        return (features,)

    def _images(self, question: Question) -> tuple[Features, ...]:
        features = tuple(map(self.tower.encode_image, self.decoder.images(question.images)))
        self._counts.images += len(features)
        return features

    def film(self, question: Question) -> Clip | None:
        """Frames of the question's video, if it was among the first that were decoded."""
        return self._films.get(question.video) if question.video else None

    def counts(self) -> dict[str, int]:
        return asdict(self._counts)


def _thinned(clip: Clip) -> Clip:
    """At most FILM_FRAMES of the clip's frames, evenly spread, in memory of their own."""
    count = len(clip.frames)
    chosen = np.linspace(0, count - 1, min(count, FILM_FRAMES)).round().astype(int)
    return replace(clip, frames=clip.frames[chosen], seconds=clip.seconds[chosen])
