"""From a question to token ids: the checkpoint's chat template, then placeholder expansion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from veripo_ray.errors import CheckpointError, DataError
from veripo_ray.policy.media import Media, Spec
from veripo_ray.prompts import render
from veripo_ray.records import Question


@dataclass(frozen=True, slots=True)
class Prompt:
    """text: the whole chat prompt; ids: [p] int32, one placeholder an item of media."""

    text: str
    ids: np.ndarray


def build_prompt(tokenizer: Any, question: Question, template: str) -> Prompt:
    """`build_prompts` of one question."""
    return build_prompts(tokenizer, [question], template)[0]


def build_prompts(tokenizer: Any, questions: Sequence[Question], template: str) -> list[Prompt]:
    """Chat prompts of questions: each's media, then the rendered template, then the assistant's
    turn.

    tokenizer: a transformers tokenizer with a chat template. Raises CheckpointError without one.
    """
    if not tokenizer.chat_template:
        raise CheckpointError(
            "the checkpoint's tokenizer has no chat template",
            fix="add chat_template.jinja to the checkpoint's folder",
        )
    if not questions:
        return []
    chats = [[{"role": "user", "content": _content(one, template)}] for one in questions]
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [Prompt(text, np.array(row, np.int32)) for text, row in zip(texts, ids, strict=True)]


def _content(question: Question, template: str) -> list[dict[str, str]]:
    media = [{"type": "video"}] if question.video else []
    media += [{"type": "image"} for _ in question.images]
    return [*media, {"type": "text", "text": render(question, template)}]


def expand(ids: np.ndarray, features: Sequence[Media], spec: Spec, tokenizer: Any) -> np.ndarray:
    """Repeat each media placeholder once a feature row: [p] ids -> [P] int32.

    In a family that tells the time, the placeholder of a video becomes, for every temporal grid
    step, its time in words and a block of placeholders between vision tokens. (The vision tokens
    that the chat template puts around a video stay where they are, as transformers from 5.10 on and
    vLLM with it leave them.)

    tokenizer: the checkpoint's. Raises DataError when the number or the modality of the
    placeholders differs from `features`, or a video lacks the timestamps that the family tells.
    """
    ids = np.asarray(ids, dtype=np.int32)
    places = np.flatnonzero((ids == spec.image_pad) | (ids == spec.video_pad))
    wanted = [spec.placeholders[int(token)] for token in ids[places]]
    given = [item.modality for item in features]
    if wanted != given:
        raise DataError(
            f"the prompt has placeholders for {wanted}, the features given are for {given}",
            fix="the question's text must not contain media tokens, and every item needs features",
        )
    parts, cursor = [], 0
    for place, item in zip(places, features, strict=True):
        parts += [ids[cursor:place], _expanded(ids[place], item, spec, tokenizer)]
        cursor = place + 1
    return np.concatenate([*parts, ids[cursor:]])


def _expanded(pad: np.int32, item: Media, spec: Spec, tokenizer: Any) -> np.ndarray:
    """What one placeholder becomes."""
    if item.modality == "image" or not spec.tells_time:
        return np.full(item.rows, pad, dtype=np.int32)
    if not item.timestamps:
        raise DataError(
            f"a video of grid {item.grid_thw} has no timestamps, which {spec.family} prompts tell",
            fix="encode it with the checkpoint's own tower",
        )
    pads = [int(pad)] * (item.rows // len(item.timestamps))
    step = [spec.vision_start, *pads, spec.vision_end]
    times = [_told(seconds, tokenizer) for seconds in item.timestamps]
    return np.array([token for time in times for token in (*time, *step)], dtype=np.int32)


def _told(seconds: float, tokenizer: Any) -> list[int]:
    """Token ids of a time as Qwen3-VL's prompts tell it, such as `<0.5 seconds>`."""
    return tokenizer.encode(f"<{seconds:.1f} seconds>", add_special_tokens=False)
