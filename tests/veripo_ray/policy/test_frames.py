"""A tower that learns sees a group once, and gets the gradients of separate sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from veripo_ray.errors import DataError
from veripo_ray.policy.folder import TOWER
from veripo_ray.policy.grouped import Packed, response_logprobs
from veripo_ray.policy.media import Features, Frames, Media
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.policy.tower import Tower

LOGPROB_GAP, GRADIENT_GAP = 1e-5, 1e-5


@pytest.fixture(scope="module")
def clip(tower: Tower, clip_of: Callable) -> Frames:
    return Frames.of_clip(clip_of(8, 1, 2), tower.policy.spec)


@pytest.fixture(scope="module")
def slow_clip(tower: Tower, clip_of: Callable) -> Frames:
    """A taller one at an uneven rate, of several windows of the tower's attention."""
    return Frames.of_clip(clip_of(6, 5, 2, fps=0.7, seed=1), tower.policy.spec)


@pytest.fixture(scope="module")
def picture(tower: Tower, clip_of: Callable) -> Frames:
    return Frames.of_image(clip_of(1, 2, 3, seed=2).frames[0], tower.policy.spec)


@pytest.fixture
def learning(checkpoint: Path) -> QwenVL:
    """Language model and tower, both of which train."""
    return QwenVL.load(checkpoint, dtype=torch.float32)


@pytest.fixture
def groups(group_of: Callable, clip: Frames, slow_clip: Frames, picture: Frames) -> list[Packed]:
    """Video, image, both, the same video again, text; uneven, empty and no responses."""
    return [
        group_of([clip], [7, 1, 12, 3], seed=0),
        group_of([picture], [5, 8], seed=1),
        group_of([picture, slow_clip], [2, 0, 9], seed=2),
        group_of([clip], [4], seed=3),
        group_of([], [6, 11], seed=4),
    ]


def gradients(policy: QwenVL, logprobs: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Of a sum with another weight on every token, so that none cancels another."""
    rng = np.random.default_rng(0)
    rows = [row for group in logprobs for row in group]
    loss = sum(
        (row * torch.from_numpy(rng.normal(size=len(row)).astype("f4"))).sum() for row in rows
    )
    policy.model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in policy.trainable().items()}


def separately(policy: QwenVL, groups: list[Packed]) -> list[list[torch.Tensor]]:
    """Each response alone behind its own copy of the prompt, whose frames are seen again."""
    return [
        [
            response_logprobs(policy, [Packed(group.prompt_ids, group.features, (response,))])[0][0]
            for response in group.responses
        ]
        for group in groups
    ]


@contextmanager
def patches_seen(policy: QwenVL) -> Iterator[list[int]]:
    """How many patches each pass of the tower took in."""
    counts: list[int] = []
    hook = policy.model.model.visual.patch_embed.register_forward_hook(
        lambda _module, args, _output: counts.append(len(args[0]))
    )
    yield counts
    hook.remove()


def patches_of(media: list[Media]) -> int:
    return sum(int(np.prod(item.grid_thw)) for item in media)


def test_the_tower_gets_the_gradients_of_separate_sequences(learning, groups):
    together = response_logprobs(learning, groups)
    ours = gradients(learning, together)
    alone = separately(learning, groups)
    theirs = gradients(learning, alone)
    for parts, others in zip(together, alone, strict=True):
        for part, other in zip(parts, others, strict=True):
            torch.testing.assert_close(part, other, rtol=0, atol=LOGPROB_GAP)
    for name, gradient in theirs.items():
        assert gradient.norm() > 0, name
        assert (ours[name] - gradient).norm() <= GRADIENT_GAP * gradient.norm(), name


def test_a_pass_sees_the_media_of_every_group_once_however_many_responses(learning, groups):
    with patches_seen(learning) as passes:
        gradients(learning, response_logprobs(learning, groups))
    assert passes == [patches_of([item for group in groups for item in group.features])]
    assert learning.seen == 5
    with patches_seen(learning) as passes:
        separately(learning, groups[:1])
    assert passes == [patches_of(groups[0].features)] * 4


def test_features_of_the_same_tower_give_the_same_log_probabilities(learning, groups, tower):
    seen = [
        Packed(group.prompt_ids, tuple(tower.encode(group.features)), group.responses)
        for group in groups
    ]
    mixed = [seen[0], groups[1], seen[2], groups[3], groups[4]]
    expected = response_logprobs(learning, groups)
    for rows in (seen, mixed):
        for parts, others in zip(response_logprobs(learning, rows), expected, strict=True):
            for part, other in zip(parts, others, strict=True):
                torch.testing.assert_close(part, other, rtol=0, atol=LOGPROB_GAP)


def test_a_tower_without_frames_sees_a_blank_and_learns_nothing_of_it(learning, groups, tower):
    """It must take part in every pass: see `QwenVL._values`."""
    features = tuple(tower.encode(groups[2].features))
    for group in (groups[4], Packed(groups[2].prompt_ids, features, groups[2].responses)):
        with patches_seen(learning) as passes:
            found = gradients(learning, response_logprobs(learning, [group]))
        assert passes == [4]
        tower_s = [gradient for name, gradient in found.items() if name.startswith(TOWER)]
        assert len(tower_s) > 5
        assert not any(gradient.any() for gradient in tower_s)
    assert learning.seen == 0


def test_a_tower_that_does_not_learn_sees_no_blank(learning, groups):
    with torch.no_grad(), patches_seen(learning) as passes:
        response_logprobs(learning, groups[4:])
    learning.freeze_tower()
    with patches_seen(learning) as passes_of_the_frozen:
        response_logprobs(learning, groups[4:])
    assert passes == passes_of_the_frozen == []


def test_gradient_checkpointing_reaches_the_tower_and_changes_nothing(learning, groups):
    expected = gradients(learning, response_logprobs(learning, groups))
    learning.enable_gradient_checkpointing()
    calls: list[int] = []
    learning.model.model.visual.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    found = gradients(learning, response_logprobs(learning, groups))
    assert len(calls) == 2  # forward, and again in the backward pass
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def test_frames_tell_what_their_features_will_be(clip, slow_clip, picture, tower):
    for item in (clip, slow_clip, picture):
        [features] = tower.encode([item])
        assert isinstance(features, Features)
        for name in ("modality", "rows", "grid_thw", "seconds_per_grid", "timestamps"):
            assert getattr(features, name) == getattr(item, name), name
    assert slow_clip.seconds_per_grid == float(np.float32(2 / 0.7))


def test_frames_for_a_policy_without_a_tower_are_refused(policy, groups):
    with pytest.raises(DataError, match="without a tower"):
        response_logprobs(policy, groups[:1])
