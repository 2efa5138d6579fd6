"""Media of questions for a trainer that meets each of them a few times: made on demand, and the
most recent kept as far as a budget of memory goes."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch

from veripo_ray import config
from veripo_ray.policy.media import Features
from veripo_ray.policy.tower import Tower, step_times
from veripo_ray.records import Question
from veripo_ray.sft.imitation import Pixels
from veripo_ray.video.decode import Clip, Decoder

BUDGET_BYTES = 4 << 30
Media = tuple[Features | Pixels, ...]


class MediaSource:
    """Features of a question's media by the checkpoint's frozen tower, or, with `pixels`, what a
    tower that learns takes in (videos only)."""

    def __init__(
        self,
        checkpoint: str | Path,
        video: config.Video,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        pixels: bool = False,
        budget_bytes: int = BUDGET_BYTES,
    ) -> None:
        self.tower = Tower.load(checkpoint, device=device, dtype=dtype)
        spec = self.tower.policy.spec
        self.decoder = Decoder(video, factor=spec.patch * spec.merge)
        self.pixels = pixels
        self.budget_bytes = budget_bytes
        self._kept: OrderedDict[tuple[str, ...], Media] = OrderedDict()
        self._bytes = 0

    def of(self, question: Question) -> Media:
        """Features (or Pixels) of the question's video or images; () for text alone.

        Raises DataError naming a file that cannot be used.
        """
        key = (question.video,) if question.video else question.images
        if key not in self._kept:
            self._keep(key, self._make(question))
        self._kept.move_to_end(key)
        return self._kept[key]

    def close(self) -> None:
        self.decoder.close()

    def _make(self, question: Question) -> Media:
        if question.video:
            clip = self.decoder.clip(question.video)
            return (self._see(clip) if self.pixels else self.tower.encode_clip(clip),)
        images = self.decoder.images(question.images)
        return tuple(self.tower.encode_image(image) for image in images)

    def _see(self, clip: Clip) -> Pixels:
        patches, grids = self.tower.pixels([clip])
        grid, spec = tuple(grids[0].tolist()), self.tower.policy.spec
        seconds = spec.temporal_patch / clip.fps
        times = step_times(clip.seconds, spec.temporal_patch)
        return Pixels("video", patches.numpy(), grid, seconds, spec.rows(grid), times)

    def _keep(self, key: tuple[str, ...], media: Media) -> None:
        self._kept[key] = media
        self._bytes += _size(media)
        while self._bytes > self.budget_bytes and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])


def _size(media: Media) -> int:
    return sum((m.patches if isinstance(m, Pixels) else m.values).nbytes for m in media)
