"""Media of questions for a trainer that meets each of them a few times: made on demand, and the
most recent kept as far as a budget of memory goes."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch

from veripo_ray import config
from veripo_ray.policy.media import Frames, Media
from veripo_ray.policy.qwen_vl import read_spec
from veripo_ray.policy.tower import Tower
from veripo_ray.records import Question
from veripo_ray.video.decode import Decoder

BUDGET_BYTES = 4 << 30


class MediaSource:
    """Features of a question's media by the checkpoint's frozen tower, or, with `frames`, what one
    that learns takes in."""

    def __init__(
        self,
        checkpoint: str | Path,
        video: config.Video,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        frames: bool = False,
        budget_bytes: int = BUDGET_BYTES,
    ) -> None:
        self.spec = read_spec(checkpoint)
        self.tower = None if frames else Tower.load(checkpoint, device=device, dtype=dtype)
        self.decoder = Decoder(video, factor=self.spec.patch * self.spec.merge)
        self.budget_bytes = budget_bytes
        self._kept: OrderedDict[tuple[str, ...], tuple[Media, ...]] = OrderedDict()
        self._bytes = 0

    def of(self, question: Question) -> tuple[Media, ...]:
        """Features (or Frames) of the question's video or images; () for text alone.

        Raises DataError naming a file that cannot be used.
        """
        key = (question.video,) if question.video else question.images
        if key not in self._kept:
            self._keep(key, self._make(question))
        self._kept.move_to_end(key)
        return self._kept[key]

    def close(self) -> None:
        self.decoder.close()

    def _make(self, question: Question) -> tuple[Media, ...]:
        frames = self._frames(question)
        return tuple(self.tower.encode(frames)) if self.tower else frames

    def _frames(self, question: Question) -> tuple[Frames, ...]:
        if question.video:
            return (Frames.of_clip(self.decoder.clip(question.video), self.spec),)
        images = self.decoder.images(question.images)
        return tuple(Frames.of_image(image, self.spec) for image in images)

    def _keep(self, key: tuple[str, ...], media: tuple[Media, ...]) -> None:
        self._kept[key] = media
        self._bytes += _size(media)
        while self._bytes > self.budget_bytes and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])


def _size(media: tuple[Media, ...]) -> int:
    return sum((m.pixels if isinstance(m, Frames) else m.values).nbytes for m in media)
