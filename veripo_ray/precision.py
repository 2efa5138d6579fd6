"""How far rollout worker and learner disagree about the same tokens, and what to say of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from veripo_ray.errors import PrecisionError
from veripo_ray.records import Group


def largest_gap(scores: Sequence[np.ndarray], group: Group) -> float:
    """The largest difference of a token's log-probability; NaN counts as infinite."""
    both = zip(scores, group.rollouts, strict=True)
    gaps = [np.abs(ours - rollout.logprobs).max(initial=0.0) for ours, rollout in both]
    return float(np.nan_to_num(gaps, nan=np.inf).max())


def gap_error(group_id: str, gap: float, limit: float) -> PrecisionError:
    """gap: the largest difference of a token's log-probability, in nats."""
    return PrecisionError(
        f"learner and rollout worker differ by {gap:.3g} in the log-probability of a token of "
        f"group {group_id!r}, the limit is {limit:.3g} (max_logprob_gap)",
        fix="likely causes: other positions of the video's tokens (check fps and "
        "seconds_per_grid), stale weights or prefix and encoder caches in the rollout worker, or "
        "sampling settings (temperature, penalties, banned tokens) that the learner does not "
        "apply; in bfloat16 the limit may be too strict",
    )
