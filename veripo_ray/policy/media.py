"""A clip or image on its way to the policy, and what a model family must tell to place it.

Where the tower is frozen its `Features` travel, made once in a run; where it learns, `Frames`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from veripo_ray.video.decode import Clip

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
        _check_times(self)
        if self.values.ndim != 2:
            raise ValueError(f"features must be [N, hidden], got shape {self.values.shape}")

    @property
    def rows(self) -> int:
        """Feature rows, which is the number of placeholder tokens in an expanded prompt."""
        return self.values.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of its array, which is nearly all of it."""
        return self.values.nbytes


@dataclass(frozen=True, slots=True)
class Frames:
    """A clip or image before the tower, for one that learns; numpy, as features are.

    pixels: [T, H, W, 3] uint8, sampled and resized: T whole temporal patches, or 1 for an image, H
        and W whole merged patches.
    rows: how many feature rows the tower makes of it. The rest is as in `Features`.
    """

    modality: Modality
    pixels: np.ndarray
    grid_thw: tuple[int, int, int]
    seconds_per_grid: float
    rows: int
    timestamps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_times(self)

    @property
    def nbytes(self) -> int:
        """As of features."""
        return self.pixels.nbytes

    @classmethod
    def of_clip(cls, clip: Clip, spec: Spec) -> Frames:
        """Raises ValueError for frames that do not divide into patches."""
        grid, patch = spec.grid(clip.frames), spec.temporal_patch
        times = _step_times(clip.seconds, patch)
        return cls("video", clip.frames, grid, patch / clip.fps, spec.rows(grid), times)

    @classmethod
    def of_image(cls, image: np.ndarray, spec: Spec) -> Frames:
        """image: [H, W, 3] uint8. Raises ValueError when it does not divide into patches."""
        grid = spec.grid(image[None])
        return cls("image", image[None], grid, 0.0, spec.rows(grid))

    def seen_as(self, values: np.ndarray) -> Features:
        """The features that a tower made of it; values: [rows, feature_size] float32."""
        return Features(
            self.modality, values, self.grid_thw, self.seconds_per_grid, self.timestamps
        )


Media = Features | Frames


def _check_times(item: Media) -> None:
    """Round what travels as float32; refuse times that a grid cannot have."""
    object.__setattr__(item, "seconds_per_grid", float(np.float32(item.seconds_per_grid)))
    if item.modality == "video" and not item.seconds_per_grid > 0:
        raise ValueError(f"a video's seconds_per_grid must be > 0, got {item.seconds_per_grid}")
    if item.timestamps and len(item.timestamps) != item.grid_thw[0]:
        raise ValueError(
            f"{len(item.timestamps)} timestamps for a grid of {item.grid_thw[0]} steps"
        )


def _step_times(seconds_T: np.ndarray, temporal_patch: int) -> tuple[float, ...]:
    """When each temporal grid step is: the mean time of the first and the last frame that it is
    made of, in seconds since the clip's first frame (Qwen3-VL's processor). Rounded beyond what
    float32 timestamps can tell, so that 1.25 s is told as 1.2 wherever the clip starts."""
    steps_GP = (seconds_T - seconds_T[0]).reshape(-1, temporal_patch)
    return tuple(((steps_GP[:, 0] + steps_GP[:, -1]) / 2).round(4).tolist())


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

    def grid(self, pixels: np.ndarray) -> tuple[int, int, int]:
        """Grid in patches of uint8 frames [T, H, W, 3]; an image is a single frame.

        Raises ValueError when the patches do not come out even.
        """
        count, height, width, channels = pixels.shape
        side = self.patch * self.merge
        even = count == 1 or count % self.temporal_patch == 0
        if height % side or width % side or channels != 3 or not even or pixels.dtype != np.uint8:
            raise ValueError(
                f"frames must be uint8 [T, H, W, 3] with T a multiple of {self.temporal_patch} "
                f"and H, W multiples of {side}, got {pixels.dtype} {pixels.shape}"
            )
        return -(-count // self.temporal_patch), height // self.patch, width // self.patch
