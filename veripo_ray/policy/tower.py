"""The frozen vision tower: sampled frames in, features out, once for every clip of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from veripo_ray.policy.media import Features, Frames
from veripo_ray.policy.qwen_vl import QwenVL

if TYPE_CHECKING:
    from veripo_ray.video.decode import Clip


class Tower:
    """A checkpoint's vision tower with its own processors."""

    def __init__(self, policy: QwenVL) -> None:
        self.policy = policy

    @classmethod
    def load(cls, checkpoint: str | Path, device: torch.device | str, dtype: torch.dtype) -> Tower:
        """Read the tower alone. Raises CheckpointError as `QwenVL.load` does."""
        return cls(QwenVL.load(checkpoint, dtype=dtype, device=device, language=False))

    def fingerprint(self) -> str:
        """A digest of all that features depend on besides the frames: weights in the precision that
        computes, the tower's settings, and how the processors normalise pixels."""
        digest = hashlib.blake2b(digest_size=20)
        for name, weight in sorted(self.policy.model.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.cpu().contiguous().view(torch.uint8).numpy())
        assert self.policy.pixels is not None  # a tower comes with its processors
        for part in (self.policy.model.config.vision_config, *self.policy.pixels.processors):
            digest.update(json.dumps(part.to_dict(), sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def encode_clip(self, clip: Clip) -> Features:
        """Features of one clip: frames [T, H, W, 3] uint8, T even, H and W whole merged patches."""
        return self.encode([Frames.of_clip(clip, self.policy.spec)])[0]

    def encode_image(self, image: np.ndarray) -> Features:
        """Features of one image, [H, W, 3] uint8, H and W whole merged patches."""
        return self.encode([Frames.of_image(image, self.policy.spec)])[0]

    @torch.inference_mode()
    def encode(self, items: Sequence[Frames]) -> list[Features]:
        """Features of several clips and images from one pass of the tower."""
        values = self.policy.see(items) if items else ()
        return [
            item.seen_as(rows.float().cpu().numpy())
            for item, rows in zip(items, values, strict=True)
        ]
