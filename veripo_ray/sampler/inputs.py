"""Media as vLLM takes them: features as they are, or frames for its own tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from veripo_ray.policy.media import Features, Frames, Media, Modality, Spec


def multi_modal_data(media: Sequence[Media], spec: Spec) -> dict[str, Any]:
    """A prompt's `multi_modal_data`. media: all features or all frames, in prompt order."""
    modalities = dict.fromkeys(item.modality for item in media)
    return {
        modality: _items(modality, [item for item in media if item.modality == modality], spec)
        for modality in modalities
    }


def _items(modality: Modality, items: Sequence[Media], spec: Spec) -> Any:
    features = [item for item in items if isinstance(item, Features)]
    if features:
        return _features(modality, features, spec)
    return [_frames(item, spec) for item in items if isinstance(item, Frames)]


def _features(modality: Modality, items: Sequence[Features], spec: Spec) -> dict[str, Any]:
    values = np.concatenate([item.values for item in items])
    media: dict[str, Any] = {
        f"{modality}_embeds": torch.from_numpy(values),
        f"{modality}_grid_thw": torch.tensor([item.grid_thw for item in items]),
    }
    if modality == "video" and spec.tells_time:
        media["timestamps"] = [list(item.timestamps) for item in items]
    elif modality == "video":  # left out, vLLM takes 1.0, and every temporal position is wrong
        media["second_per_grid_ts"] = torch.tensor([item.seconds_per_grid for item in items])
    return media


def _frames(item: Frames, spec: Spec) -> Any:
    """An image, or the frames of a clip and when they are from."""
    if item.modality == "image":
        from PIL import Image

        return Image.fromarray(item.pixels[0])
    return item.pixels, _metadata(item, spec)


def _metadata(item: Frames, spec: Spec) -> dict[str, Any]:
    """What makes vLLM's times ours, to the bit: it divides `temporal_patch` by the rate, and a
    frame's index by it where the family tells the time."""
    count = len(item.pixels)
    if spec.tells_time:  # a rate of 1 makes an index of each frame's second
        rate = 1.0
        indices = [second for second in item.timestamps for _ in range(spec.temporal_patch)]
    else:
        rate = spec.temporal_patch / item.seconds_per_grid
        indices = list(range(count))
    return {
        "fps": rate,
        "duration": count / rate,
        "total_num_frames": count,
        "frames_indices": indices,
        "video_backend": "decord",
        "do_sample_frames": False,
    }
