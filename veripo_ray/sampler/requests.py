"""What goes into the sampler and what comes out, and what it refuses before vLLM sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from veripo_ray.errors import DataError
from veripo_ray.policy.media import Frames, Media, Spec
from veripo_ray.policy.prompting import expand
from veripo_ray.records import Rollout


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """A question to the policy: prompt ids [p] int32 with one placeholder an item of media, and
    the features of these items (frames, where the tower learns) in their order."""

    id: str
    prompt_ids: np.ndarray
    features: tuple[Media, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """A finished group: prompt ids [P] int32 with the placeholders expanded, and its rollouts.

    Pickled, it is two vectors whatever its size: a buffer a rollout costs both ends more than the
    tokens do.
    """

    id: str
    prompt_ids: np.ndarray
    rollouts: tuple[Rollout, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        rollouts = self.rollouts
        plain = [(r.text, len(r.token_ids), r.finish_reason, r.policy_version) for r in rollouts]
        ids = np.concatenate([self.prompt_ids, *(r.token_ids for r in rollouts)])
        logprobs = np.concatenate([r.logprobs for r in rollouts] or [_NONE])
        return _sampled, (self.id, len(self.prompt_ids), plain, ids, logprobs)


_NONE = np.zeros(0, np.float32)


def _sampled(
    id_: str,
    prompt: int,
    plain: list[tuple[str, int, Any, int]],
    ids: np.ndarray,
    logprobs: np.ndarray,
) -> Sampled:
    """What `Sampled.__reduce__` took apart; its vectors share two, and were checked before."""
    ends = np.cumsum([length for _, length, _, _ in plain]).tolist()
    rollouts = tuple(
        Rollout.model_construct(
            text=text,
            token_ids=ids[prompt + end - length : prompt + end],
            logprobs=logprobs[end - length : end],
            finish_reason=reason,
            policy_version=version,
        )
        for (text, length, reason, version), end in zip(plain, ends, strict=True)
    )
    return Sampled(id_, ids[:prompt], rollouts)


def checked_prompt(
    request: SampleRequest,
    spec: Spec,
    tokenizer: Any,
    *,
    tower: bool = False,
    max_tokens: int,
    max_model_len: int,
) -> np.ndarray:
    """The request's expanded prompt ids [P] int32. tower: whether the engine has one for frames.

    Raises DataError, naming the request, for what vLLM could not answer. Features of a wrong shape
    it would not even refuse: its engine dies of them.
    """
    name = f"request {request.id!r}"
    for item in request.features:
        _check_kind(name, item, tower)
        _check_shape(name, item, spec)
    try:
        prompt_ids = expand(request.prompt_ids, request.features, spec, tokenizer)
    except DataError as error:
        raise DataError(f"{name}: {error.problem}", fix=error.fix) from None
    if not len(prompt_ids) or prompt_ids.min() < 0 or prompt_ids.max() >= spec.vocab_size:
        raise DataError(
            f"{name}: the prompt is empty or has ids outside the vocabulary of {spec.vocab_size}",
            fix="build the prompt with the checkpoint's own tokenizer",
        )
    if len(prompt_ids) + max_tokens > max_model_len:
        raise DataError(
            f"{name}: {len(prompt_ids)} prompt tokens and max_tokens = {max_tokens} exceed "
            f"rollout.max_model_len = {max_model_len}",
            fix="raise rollout.max_model_len, or lower max_tokens, video.max_frames or "
            "video.max_pixels",
        )
    return prompt_ids


def _check_kind(name: str, item: Media, tower: bool) -> None:
    if isinstance(item, Frames) != tower:
        given, wanted = (
            ("frames", "features") if isinstance(item, Frames) else ("features", "frames")
        )
        raise DataError(
            f"{name}: {given} of a {item.modality} came where the sampler takes {wanted}",
            fix="give sampler and encoder the same learner.train_vision",
        )


def _check_shape(name: str, item: Media, spec: Spec) -> None:
    given, wanted = _shapes(item, spec)
    if given != wanted:
        what = "frames" if isinstance(item, Frames) else "features"
        raise DataError(
            f"{name}: {item.modality} {what} of shape {given}, but a grid of "
            f"{item.grid_thw} patches makes {wanted}",
            fix="encode with the vision tower of the checkpoint that samples",
        )


def _shapes(item: Media, spec: Spec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape that an item has, and the one that its grid asks for."""
    t, h, w = item.grid_thw
    if isinstance(item, Frames):
        count = 1 if item.modality == "image" else t * spec.temporal_patch
        return item.pixels.shape, (count, h * spec.patch, w * spec.patch, 3)
    return item.values.shape, (spec.rows(item.grid_thw), spec.feature_size)
