"""Multimodal rotary positions, as Qwen2.5-VL and Qwen3-VL were trained and as vLLM computes them.

Text advances all three axes (time, height, width) together. Features that lie side by side in the
prompt, a block, take a grid that starts at the next free position; whatever follows starts at the
*largest position used so far + 1* (Qwen2.5-VL report, section 2.1.3; vLLM's
`get_mrope_input_positions`). An image is one block. So is a video in Qwen2.5-VL, its time axis
stretched to `tokens_per_second` and truncated to integers; there transformers 5.15-5.19 continues
at start + max(h, w) / merge instead, which moves log-probabilities by up to 0.5, so positions are
computed here. In Qwen3-VL every temporal grid step of a video is a block of its own, behind the
words that tell its time, and time advances with the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from veripo_ray.errors import DataError
from veripo_ray.policy.media import Media, Spec


def mrope_positions(
    ids_P: np.ndarray, features: Sequence[Media], spec: Spec
) -> tuple[np.ndarray, int]:
    """Positions of an expanded prompt.

    ids_P: [P] token ids, placeholders expanded to one a feature row; features in prompt order.
    Returns int64 [3, P] (time, height, width) and the position of the token that follows.
    Raises DataError when placeholders and features do not match.
    """
    parts, cursor, next_position = [], 0, 0
    for start, grid_3N in _blocks(ids_P, features, spec):
        parts.append(_text(start - cursor, next_position))
        next_position += start - cursor
        parts.append(grid_3N + next_position)
        next_position += int(grid_3N.max()) + 1
        cursor = start + grid_3N.shape[1]
    rest = len(ids_P) - cursor
    parts.append(_text(rest, next_position))
    return np.concatenate(parts, axis=1), next_position + rest


def _blocks(
    ids_P: np.ndarray, features: Sequence[Media], spec: Spec
) -> list[tuple[int, np.ndarray]]:
    """Where each block starts in the prompt, and its own positions [3, N] from 0."""
    pads = np.flatnonzero(np.isin(ids_P, list(spec.placeholders)))
    rows = sum(item.rows for item in features)
    if len(pads) != rows:
        raise DataError(
            f"a prompt has {len(pads)} media placeholders, its features have {rows} rows",
            fix="expand the prompt with exactly these features, once",
        )
    blocks, end = [], 0
    for item in features:
        for grid_3N in _grids(item, spec):
            run = pads[end : end + grid_3N.shape[1]]
            if item.rows != spec.rows(item.grid_thw) or not _fits(ids_P, run, item, spec):
                raise DataError(
                    f"a {item.modality} of grid {item.grid_thw} with {item.rows} feature rows does "
                    f"not fit the placeholders of its prompt",
                    fix="expand the prompt with these features, in the order of its placeholders, "
                    "and for the family of this checkpoint",
                )
            blocks.append((int(run[0]), grid_3N))
            end += len(run)
    return blocks


def _fits(ids_P: np.ndarray, run: np.ndarray, item: Media, spec: Spec) -> bool:
    """Whether these placeholders are all of the item's kind and form a block."""
    contiguous = run[-1] - run[0] + 1 == len(run)
    told = item.modality == "video" and spec.tells_time and run[0] > 0  # words lie in between
    apart = not told or int(ids_P[run[0] - 1]) not in spec.placeholders
    return (
        contiguous and apart and {spec.placeholders[int(i)] for i in ids_P[run]} == {item.modality}
    )


def _text(length: int, start: int) -> np.ndarray:
    return np.broadcast_to(np.arange(length, dtype=np.int64) + start, (3, length))


def _grids(item: Media, spec: Spec) -> list[np.ndarray]:
    """Positions [3, N] from 0 of every block of an item."""
    t, h, w = item.grid_thw
    h, w = h // spec.merge, w // spec.merge
    if item.modality == "image":
        return [np.indices((t, h, w)).reshape(3, -1)]
    if spec.tokens_per_second is None:
        return [np.indices((1, h, w)).reshape(3, -1)] * t
    grid = np.indices((t, h, w))
    grid[0] = (grid[0] * (item.seconds_per_grid * spec.tokens_per_second)).astype(np.int64)
    return [grid.reshape(3, -1)]
