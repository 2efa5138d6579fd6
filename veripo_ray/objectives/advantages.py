"""How much better than its group a rollout was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

EQUAL = 1e-8  # rewards closer than this are the same; theirs are multiples of 0.05


def group_advantages(
    rewards_G: Sequence[float], mode: Literal["normalised", "centred"] = "normalised"
) -> np.ndarray:
    """Advantages [G] float32 of one group's rewards.

    normalised: (r - mean) / std (GRPO, arXiv 2402.03300, section 4.1.2), with the sample standard
    deviation (over G - 1) as TRL and OpenRLHF take it. They add 1e-4 and 1e-9 to it against a
    division by zero; here a group of equal rewards gets zeros and nothing is added.
    centred: r - mean (Dr.GRPO, arXiv 2503.20783).
    """
    rewards = np.asarray(rewards_G, dtype=np.float64)
    centred = rewards - rewards.mean()
    if np.ptp(rewards) < EQUAL:
        return np.zeros(len(rewards), np.float32)
    scale = rewards.std(ddof=1) if mode == "normalised" else 1.0
    return (centred / scale).astype(np.float32)


def is_informative(accuracies_G: Sequence[float]) -> bool:
    """False for a group that is all right or all wrong: accuracy has nothing to teach there."""
    accuracies = np.asarray(accuracies_G, dtype=np.float64)
    return not (bool((accuracies >= 1).all()) or bool((accuracies <= 0).all()))
