"""The frozen vision tower: sampled frames in, features out, once for every clip of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from veripo_ray.policy.folder import load_processors
from veripo_ray.policy.media import Features, Modality
from veripo_ray.policy.qwen_vl import QwenVL

if TYPE_CHECKING:
    from veripo_ray.video.decode import Clip


class Tower:
    """A checkpoint's vision tower with its own processors, whose sampling and resizing are off:
    frames arrive sampled and resized (see `veripo_ray.video`)."""

    def __init__(self, policy: QwenVL, video_processor: Any, image_processor: Any) -> None:
        self.policy = policy
        self._video_processor = video_processor
        self._image_processor = image_processor

    @classmethod
    def load(cls, checkpoint: str | Path, device: torch.device | str, dtype: torch.dtype) -> Tower:
        """Read the tower alone. Raises CheckpointError as `QwenVL.load` does."""
        policy = QwenVL.load(checkpoint, dtype=dtype, device=device, language=False)
        return cls(policy, *load_processors(checkpoint))

    def encode_clip(self, clip: Clip) -> Features:
        """Features of one clip: frames [T, H, W, 3] uint8, T even, H and W whole merged patches."""
        return self.encode_clips([clip])[0]

    def encode_clips(self, clips: Sequence[Clip]) -> list[Features]:
        """Features of several clips from one pass of the tower."""
        patch = self.policy.spec.temporal_patch
        pixels, grids = self.pixels(clips)
        seconds = [patch / clip.fps for clip in clips]
        times = [step_times(clip.seconds, patch) for clip in clips]
        return self._encode(pixels, grids, "video", seconds, times)

    def pixels(self, clips: Sequence[Clip]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the tower takes in: patches [N, channels * frames * patch**2], normalised, and each
        clip's grid, int64 [clips, 3]."""
        batch = self._video_processor(
            videos=[self._channels_first(clip.frames) for clip in clips],
            do_sample_frames=False,
            do_resize=False,
            cap_pixels_per_frame=False,
            return_tensors="pt",
        )
        return batch["pixel_values_videos"], batch["video_grid_thw"]

    def encode_image(self, image: np.ndarray) -> Features:
        """Features of one image, [H, W, 3] uint8, H and W whole merged patches."""
        frame = self._channels_first(image[None])[0]
        batch = self._image_processor(images=[frame], do_resize=False, return_tensors="pt")
        return self._encode(batch["pixel_values"], batch["image_grid_thw"], "image", [0.0], [()])[0]

    def _channels_first(self, frames: np.ndarray) -> torch.Tensor:
        """[T, H, W, 3] uint8 -> [T, 3, H, W], after checking that the patches come out even."""
        side = self.policy.spec.patch * self.policy.spec.merge
        count, height, width, channels = frames.shape
        even = count == 1 or count % self.policy.spec.temporal_patch == 0
        if height % side or width % side or channels != 3 or not even or frames.dtype != np.uint8:
            raise ValueError(
                f"frames must be uint8 [T, H, W, 3] with T a multiple of "
                f"{self.policy.spec.temporal_patch} and H, W multiples of {side}, "
                f"got {frames.dtype} {frames.shape}"
            )
        return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def _encode(
        self,
        pixels: torch.Tensor,
        grids: torch.Tensor,
        modality: Modality,
        seconds: list[float],
        times: list[tuple[float, ...]],
    ) -> list[Features]:
        device = self.policy.device
        values = self.policy.encode(pixels.to(device), grids.to(device), modality)
        shapes = [(t, h, w) for t, h, w in grids.tolist()]
        return [
            Features(modality, item.float().cpu().numpy(), shape, step, told)
            for item, shape, step, told in zip(values, shapes, seconds, times, strict=True)
        ]


def step_times(seconds_T: np.ndarray, temporal_patch: int) -> tuple[float, ...]:
    """When each temporal grid step is: the mean time of the first and the last frame that it is
    made of, in seconds since the clip's first frame (Qwen3-VL's processor)."""
    steps_GP = (seconds_T - seconds_T[0]).reshape(-1, temporal_patch)
    return tuple(((steps_GP[:, 0] + steps_GP[:, -1]) / 2).tolist())
