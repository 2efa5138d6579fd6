"""What the frozen tower makes of a clip or image, and what a model family must tell to place it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Modality = Literal["video", "image"]


@dataclass(frozen=True, slots=True)
class Features:
    """Vision features of one clip or image; numpy, so that Ray shares them without a copy.

    values: [N, feature_size] float32, N = t * h * w / merge**2, in the order of the placeholders:
        what takes the embedding's place and, side by side with it, each deepstack level.
    grid_thw: grid in patches (after the temporal patch, before the spatial merge).
    seconds_per_grid: seconds between temporal grid steps, rounded to float32, because that is how
        it travels to the rollout engine and a temporal position is a truncated product of it;
        0.0 for an image.
    timestamps: of a video, seconds since its first frame, one a temporal grid step: the mean of
        the first and the last frame that it is made of. A family that tells the time in words
        (see `Spec.tells_time`) needs them; () for an image.
    """

    modality: Modality
    values: np.ndarray
    grid_thw: tuple[int, int, int]
    seconds_per_grid: float
    timestamps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds_per_grid", float(np.float32(self.seconds_per_grid)))
        if self.values.ndim != 2:
            raise ValueError(f"features must be [N, hidden], got shape {self.values.shape}")
        if self.modality == "video" and not self.seconds_per_grid > 0:
            raise ValueError(f"a video's seconds_per_grid must be > 0, got {self.seconds_per_grid}")
        if self.timestamps and len(self.timestamps) != self.grid_thw[0]:
            raise ValueError(
                f"{len(self.timestamps)} timestamps for a grid of {self.grid_thw[0]} steps"
            )

    @property
    def rows(self) -> int:
        """Feature rows, which is the number of placeholder tokens in an expanded prompt."""
        return self.values.shape[0]


@dataclass(frozen=True, slots=True)
class Spec:
    """The numbers of a checkpoint that prompts, positions and the sampler need.

    patch: pixels; merge: patches a side of one feature; temporal_patch: frames a grid step;
    tokens_per_second: temporal positions a second of video; None in a family that tells the time
        in words instead, before each temporal grid step (Qwen3-VL).
    hidden_size: width of an embedding; deepstack_levels: how many more vectors of that width the
        tower makes of each feature, for the first layers' hidden states.
    stop_ids end a response; banned_ids (every other special token) are never sampled.
    """

    family: str
    patch: int
    merge: int
    temporal_patch: int
    tokens_per_second: float | None
    hidden_size: int
    vocab_size: int
    image_pad: int
    video_pad: int
    vision_start: int
    vision_end: int
    stop_ids: tuple[int, ...]
    banned_ids: tuple[int, ...]
    deepstack_levels: int = 0

    @property
    def feature_size(self) -> int:
        """Width of a feature: an embedding and every deepstack level."""
        return self.hidden_size * (1 + self.deepstack_levels)

    @property
    def tells_time(self) -> bool:
        """Whether the prompt tells each temporal grid step's time in words."""
        return self.tokens_per_second is None

    @property
    def placeholders(self) -> dict[int, Modality]:
        """Which token id stands for which modality."""
        return {self.image_pad: "image", self.video_pad: "video"}

    def rows(self, grid_thw: tuple[int, int, int]) -> int:
        """Feature rows (= placeholder tokens) of a grid."""
        t, h, w = grid_thw
        return t * (h // self.merge) * (w // self.merge)
