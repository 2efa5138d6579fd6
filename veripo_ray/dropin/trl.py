"""The verifier's reward as a reward function of TRL's GRPOTrainer (and its siblings).

    GRPOTrainer(..., reward_funcs=VeripoReward(inconsistency_penalty=0.5))

TRL 1.16 leaves a completion whose reward is None out of its group's mean and gives it no advantage.
So give it this function alone: beside another one, None only means that the other decides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from veripo_ray.dropin.rewards import Rewards, means, read

log = logging.getLogger(__name__)


class VeripoReward:
    """settings: those of `rewards.RewardSettings`, by name.

    The data set's columns beside `prompt`: `gold`, and where they apply `kind`, `options`,
    `question`, `question_id`.
    """

    __name__ = "veripo"  # what TRL calls the reward in its metrics

    def __init__(self, **settings: Any) -> None:
        self._rewards = Rewards(read(settings))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward a completion, None for one that could not be scored."""
        lists = {name: values for name, values in columns.items() if _is_column(values, prompts)}
        lists["prompt"] = prompts
        rows = [
            {name: values[at] for name, values in lists.items()} for at in range(len(completions))
        ]
        scored = self._rewards(rows, completions)
        if log_metric:
            for name, value in means(scored).items():
                log_metric(f"veripo/{name}", value)
        if errors := [one.error for one in scored if one.error]:
            log.warning("%d of %d have no reward: %s", len(errors), len(scored), errors[0])
        return [one.reward for one in scored]


def _is_column(values: Any, prompts: Sequence[Any]) -> bool:
    """TRL passes the columns of the data set beside things of its own, such as trainer_state."""
    return isinstance(values, list) and len(values) == len(prompts)
