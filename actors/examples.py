"""Groups and pairs as the learner takes them: with their advantages and reference scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from veripo_ray import config
from veripo_ray.learner import TrainGroup, TrainPair
from veripo_ray.objectives.advantages import group_advantages
from veripo_ray.records import Group, Pair


def train_group(
    group: Group,
    phase: config.Grpo,
    reference: Mapping[str, Sequence[np.ndarray]] | None,
    proximal: Mapping[str, Sequence[np.ndarray]],
) -> TrainGroup:
    rewards = [reward.total for reward in group.rewards]
    return TrainGroup(
        id=group.id,
        prompt_ids=group.prompt_ids,
        responses=[rollout.token_ids for rollout in group.rollouts],
        old_logprobs=[rollout.logprobs for rollout in group.rollouts],
        advantages=group_advantages(rewards, phase.advantage),
        ref_logprobs=reference[group.id] if reference else None,
        proximal_logprobs=proximal.get(group.id),
    )


def train_pair(pair: Pair) -> TrainPair:
    chosen, rejected = pair.chosen.reference_logprob, pair.rejected.reference_logprob
    assert chosen is not None, f"pair {pair.id} came past the reference"
    assert rejected is not None, f"pair {pair.id} came past the reference"
    return TrainPair(
        id=pair.id,
        prompt_ids=pair.prompt_ids,
        chosen=pair.chosen.token_ids,
        rejected=pair.rejected.token_ids,
        reference_chosen=chosen,
        reference_rejected=rejected,
    )
