"""A group made of plain texts: rollouts of which nobody kept token ids or log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from veripo_ray.records import Group, Question, Rollout
from veripo_ray.verifier.tokens import Encode

_STOP = np.int32(-1)  # no tokenizer's id: it only ends a response, and no text is made of it


def group_of_texts(
    question: Question,
    responses: Iterable[tuple[str, Literal["stop", "length"]]],
    encode: Encode,
) -> Group:
    """The group of a question with (text, why it ended) of each response, for `build_pairs`.

    Its prompt is empty, and its log-probabilities are 0: no learner can use it.
    """
    rollouts = tuple(_rollout(text, reason, encode) for text, reason in responses)
    return Group(
        id=question.id, question=question, prompt_ids=np.zeros(0, np.int32), rollouts=rollouts
    )


def _rollout(text: str, reason: Literal["stop", "length"], encode: Encode) -> Rollout:
    ids = np.append(encode(text), _STOP).astype(np.int32)
    return Rollout(
        text=text,
        token_ids=ids,
        logprobs=np.zeros(len(ids), np.float32),
        finish_reason=reason,
        policy_version=0,
    )
