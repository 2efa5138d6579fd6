"""From a file of demonstrations to what the learner imitates, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import numpy as np

from veripo_ray import config
from veripo_ray.errors import ConfigError, DataError
from veripo_ray.policy.media import Media
from veripo_ray.policy.prompting import build_prompt, expand
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.questions import load_questions
from veripo_ray.records import Question
from veripo_ray.sft.imitation import Demonstration


def load_demonstrations(data: config.Data, phase: config.SftPhase) -> list[Question]:
    """The phase's questions, every one with a demonstration. Raises DataError otherwise."""
    path = phase.demonstrations or data.train
    if path is None:
        raise ConfigError("sft has no demonstrations", fix="set sft.demonstrations to a JSONL file")
    questions, bad = load_questions(path, data.format, data.video_root)
    without = [question.id for question in questions if not question.demonstration]
    if without:
        raise DataError(
            f"{path}: {len(without)} questions have no demonstration, the first is {without[0]!r}",
            fix="give each row a `demonstration`: the whole response to imitate",
        )
    if not questions or len(bad) > data.max_bad_share * (len(bad) + len(questions)):
        raise DataError(
            f"{path}: {len(bad)} of {len(bad) + len(questions)} rows cannot be used, "
            f"among them {'; '.join(map(str, bad[:3]))}",
            fix="mend them, or raise data.max_bad_share",
        )
    return questions


def demonstration(
    policy: QwenVL,
    question: Question,
    media: Sequence[Media],
    template: str,
    phase: config.SftPhase,
) -> Demonstration:
    """Token ids and weights of one question's prompt and demonstrated response."""
    unexpanded = build_prompt(policy.tokenizer, question, template).ids
    prompt = expand(unexpanded, media, policy.spec, policy.tokenizer)
    text = question.demonstration or ""
    encoded = policy.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    conclusion = text.rfind(phase.conclusion)
    starts_R = np.array([start for start, _ in encoded["offset_mapping"]] + [len(text)])
    late_R = (starts_R >= conclusion) & (conclusion >= 0)
    return Demonstration(
        id=question.id,
        prompt_ids=prompt,
        response=np.array([*encoded["input_ids"], policy.spec.stop_ids[0]], np.int32),
        weights=np.where(late_R, phase.answer_weight, 1.0).astype(np.float32),
    )


def steps_of(phase: config.SftPhase, demonstrations: int) -> int:
    """Optimiser steps of the phase; the last batch of an epoch may be short."""
    return phase.steps or phase.epochs * -(-demonstrations // phase.batch)


def step_folder(step: int) -> str:
    """Name of the checkpoint written after `step` steps."""
    return f"step-{step:06d}"


def learning_rate(phase: config.SftPhase, step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to `final_lr` of it. step counts from 0."""
    warm = min(1.0, (step + 1) / phase.warmup_steps)
    return phase.lr * warm * (1.0 - (1.0 - phase.final_lr) * step / steps)


def batches(
    questions: Sequence[Question], phase: config.SftPhase, seed: int
) -> Iterator[list[Question]]:
    """Endless: each epoch in an order of its own, which seed and epoch alone decide."""
    epoch = 0
    while True:
        order = Random(f"{seed} {epoch}").sample(range(len(questions)), len(questions))
        for start in range(0, len(order), phase.batch):
            yield [questions[place] for place in order[start : start + phase.batch]]
        epoch += 1
