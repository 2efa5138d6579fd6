"""Multimodal rotary positions of Qwen2.5-VL, as the model was trained and as vLLM computes them.

Text advances all three axes (time, height, width) together. A clip's features take a grid that
starts at the next free position, its time axis stretched to `tokens_per_second` and truncated to
integers; whatever follows starts at the *largest position used so far + 1* (Qwen2.5-VL report,
section 2.1.3; vLLM's `get_mrope_input_positions`). transformers 5.15-5.19 continues after a video
at start + max(h, w) / merge instead, which moves log-probabilities by up to 0.5, so positions are
computed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from veripo_ray.errors import DataError
from veripo_ray.policy.media import Features, Spec


def mrope_positions(
    ids_P: np.ndarray, features: Sequence[Features], spec: Spec
) -> tuple[np.ndarray, int]:
    """Positions of an expanded prompt.

    ids_P: [P] token ids, placeholders expanded to one a feature row; features in prompt order.
    Returns int64 [3, P] (time, height, width) and the position of the token that follows.
    Raises DataError when placeholders and features do not match.
    """
    starts = media_starts(ids_P, features, spec)
    parts, cursor, next_position = [], 0, 0
    for start, item in zip(starts, features, strict=True):
        parts.append(_text(start - cursor, next_position))
        next_position += start - cursor
        grid = _grid(item, spec) + next_position
        parts.append(grid)
        next_position = int(grid.max()) + 1
        cursor = start + grid.shape[1]
    rest = len(ids_P) - cursor
    parts.append(_text(rest, next_position))
    return np.concatenate(parts, axis=1), next_position + rest


def media_starts(ids_P: np.ndarray, features: Sequence[Features], spec: Spec) -> list[int]:
    """Index of the first placeholder of each item; checks count and modality of every row."""
    pads = np.flatnonzero(np.isin(ids_P, list(spec.placeholders)))
    rows = [item.rows for item in features]
    if len(pads) != sum(rows):
        raise DataError(
            f"a prompt has {len(pads)} media placeholders, its features have {sum(rows)} rows",
            fix="expand the prompt with exactly these features, once",
        )
    ends = np.cumsum(rows, dtype=int)
    for item, end in zip(features, ends, strict=True):
        _check_run(ids_P, pads[end - item.rows : end], item, spec)
    return [int(pads[end - count]) for count, end in zip(rows, ends, strict=True)]


def _check_run(ids_P: np.ndarray, run: np.ndarray, item: Features, spec: Spec) -> None:
    contiguous = run[-1] - run[0] + 1 == len(run)
    kinds = {spec.placeholders[int(token)] for token in ids_P[run]}
    if item.rows != spec.rows(item.grid_thw) or not contiguous or kinds != {item.modality}:
        raise DataError(
            f"a {item.modality} of grid {item.grid_thw} with {item.rows} feature rows does not fit "
            f"the {'/'.join(sorted(kinds))} placeholders {run[0]}..{run[-1]} of its prompt",
            fix="give features in the order of the prompt's placeholders",
        )


def _text(length: int, start: int) -> np.ndarray:
    return np.broadcast_to(np.arange(length, dtype=np.int64) + start, (3, length))


def _grid(item: Features, spec: Spec) -> np.ndarray:
    t, h, w = item.grid_thw
    grid = np.indices((t, h // spec.merge, w // spec.merge))
    if item.modality == "video":
        grid[0] = (grid[0] * (item.seconds_per_grid * spec.tokens_per_second)).astype(np.int64)
    return grid.reshape(3, -1)
