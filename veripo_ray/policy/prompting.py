"""From a question to token ids: the checkpoint's chat template, then placeholder expansion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from veripo_ray.errors import CheckpointError, DataError
from veripo_ray.policy.media import Features, Spec
from veripo_ray.prompts import render
from veripo_ray.records import Question


@dataclass(frozen=True, slots=True)
class Prompt:
    """text: the whole chat prompt; ids: [p] int32, one placeholder an item of media."""

    text: str
    ids: np.ndarray


def build_prompt(tokenizer: Any, question: Question, template: str) -> Prompt:
    """Chat prompt of a question: its media, then the rendered template, then the assistant's turn.

    tokenizer: a transformers tokenizer with a chat template. Raises CheckpointError without one.
    """
    if not tokenizer.chat_template:
        raise CheckpointError(
            "the checkpoint's tokenizer has no chat template",
            fix="add chat_template.jinja to the checkpoint's folder",
        )
    media: list[dict[str, str]] = [{"type": "video"}] if question.video else []
    media += [{"type": "image"} for _ in question.images]
    content = [*media, {"type": "text", "text": render(question, template)}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Prompt(text, np.asarray(ids, dtype=np.int32))


def expand(ids: np.ndarray, features: Sequence[Features], spec: Spec) -> np.ndarray:
    """Repeat each media placeholder once a feature row: [p] ids -> [P] int32.

    Raises DataError when the number or the modality of the placeholders differs from `features`.
    """
    ids = np.asarray(ids, dtype=np.int32)
    places = np.flatnonzero(np.isin(ids, list(spec.placeholders)))
    wanted = [spec.placeholders[int(token)] for token in ids[places]]
    given = [item.modality for item in features]
    if wanted != given:
        raise DataError(
            f"the prompt has placeholders for {wanted}, the features given are for {given}",
            fix="the question's text must not contain media tokens, and every item needs features",
        )
    counts = np.ones(len(ids), dtype=np.int64)
    counts[places] = [item.rows for item in features]
    return np.repeat(ids, counts)
