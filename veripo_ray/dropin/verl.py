"""The verifier's reward as verl's custom reward function.

    custom_reward_function.path=pkg://veripo_ray.dropin.verl
    custom_reward_function.name=compute_score

verl has no way to say that a response has no reward: whatever number stands in its place is trained
on. So a response that cannot be scored raises ScoringError, which ends the step with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from omegaconf import OmegaConf

from veripo_ray.dropin.rewards import Rewards, read
from veripo_ray.errors import ScoringError


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    reward_router_address: str | None = None,  # noqa: ARG001 - verl's, where it serves a reward model
    reward_model_tokenizer: Any = None,  # noqa: ARG001
    **settings: Any,
) -> dict[str, float]:
    """verl takes `score` for the reward and logs the rest.

    extra_info: of the row, may hold `kind`, `options`, `question`, `index`. settings: those of
    `rewards.RewardSettings`, from verl's `custom_reward_function.reward_kwargs`. Raises
    ScoringError for a response that cannot be scored, ConfigError for settings that do not fit.
    """
    row = {**(extra_info or {}), "gold": ground_truth}
    key = json.dumps(settings, sort_keys=True, default=OmegaConf.to_container)
    (scored,) = _rewards(key)([row], [solution_str])
    if scored.reward is None:
        raise ScoringError(
            f"a response of {data_source}, row {row.get('index', '(no index)')}, has no reward: "
            f"{scored.error}",
            fix="correct or leave out the row; for a judge's failure see that the judge is up",
        )
    verdict = scored.verdict
    return {
        "score": scored.reward,
        "accuracy": verdict["accuracy"].value or 0.0,
        "format": float(verdict["format"].passed is True),
        "inconsistent": float(verdict.consistent is False),
        "repetition": verdict["repetition"].value or 0.0,
        "think_tokens": verdict["length"].value or 0.0,
    }


@lru_cache(maxsize=8)
def _rewards(settings: str) -> Rewards:
    """One for all calls with the same settings: verl calls once a response."""
    return Rewards(read(json.loads(settings)))
