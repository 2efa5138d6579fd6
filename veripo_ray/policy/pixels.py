"""From frames to what a vision tower takes in, by the checkpoint's own processors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veripo_ray.errors import CheckpointError
from veripo_ray.policy.folder import load_processors
from veripo_ray.policy.media import Frames, Modality


class Pixels:
    """A checkpoint's video and image processors, their sampling and resizing off: frames arrive
    sampled and resized (see `veripo_ray.video`)."""

    def __init__(self, video_processor: Any, image_processor: Any) -> None:
        self._video, self._image = video_processor, image_processor

    @classmethod
    def load(cls, checkpoint: str | Path) -> Pixels:
        """Raises CheckpointError when the folder does not say how its tower wants pixels, or says
        it in a way that vLLM does not follow: it normalises videos as it does images."""
        video, image = load_processors(checkpoint)
        of_videos, of_images = _normalisation(video), _normalisation(image)
        if of_videos != of_images:
            raise CheckpointError(
                f"checkpoint '{checkpoint}' normalises videos by (mean, std) = {of_videos}, images "
                f"by {of_images}; vLLM would treat videos as images and see other pixels",
                fix="give both processors the same image_mean and image_std",
            )
        return cls(video, image)

    @property
    def processors(self) -> tuple[Any, Any]:
        """Of videos and of images; `to_dict` gives their settings."""
        return self._video, self._image

    def patches(
        self, items: Sequence[Frames], device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Patches of the items one behind the other, float32 [N, channels * temporal_patch *
        patch**2], normalised, and each item's grid, int64 [items, 3]."""
        parts = [
            self._run(modality, [_channels_first(item).to(device) for item in run])
            for modality, run in groupby(items, lambda item: item.modality)
        ]
        patches, grids = zip(*parts, strict=True)
        return torch.cat(patches), torch.cat(grids).to(device)

    def _run(self, modality: Modality, videos: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Patches and grids of consecutive items of one kind."""
        if modality == "image":
            images = [frames[0] for frames in videos]
            batch = self._image(images=images, do_resize=False, return_tensors="pt")
            return batch["pixel_values"], batch["image_grid_thw"]
        batch = self._video(
            videos=videos,
            do_sample_frames=False,
            do_resize=False,
            cap_pixels_per_frame=False,
            return_tensors="pt",
        )
        return batch["pixel_values_videos"], batch["video_grid_thw"]


def _channels_first(item: Frames) -> Tensor:
    """[T, 3, H, W] uint8, in memory of its own: what Ray shares is read-only."""
    return torch.from_numpy(np.array(item.pixels.transpose(0, 3, 1, 2)))


def _normalisation(processor: Any) -> tuple[list[float], list[float]]:
    """Mean and deviation of the channels."""
    return list(processor.image_mean), list(processor.image_std)
