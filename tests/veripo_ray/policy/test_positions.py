"""Positions equal vLLM's own, and through them log-probabilities equal transformers' forward."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veripo_ray.errors import DataError
from veripo_ray.policy.media import Features, Spec
from veripo_ray.policy.positions import mrope_positions

SPEC = Spec(
    family="qwen2_5_vl", patch=14, merge=2, temporal_patch=2, tokens_per_second=2, hidden_size=4,
    vocab_size=100, image_pad=6, video_pad=7, vision_start=3, vision_end=4, stop_ids=(2,),
    banned_ids=(3, 4, 6, 7),
)  # fmt: skip
PADS = {"image": SPEC.image_pad, "video": SPEC.video_pad}


def features(modality: str, grid: tuple[int, int, int], seconds: float = 1.0) -> Features:
    rows = SPEC.rows(grid)
    return Features(modality, np.zeros((rows, 4), np.float32), grid, seconds)


def sequence(items: list[tuple[int, Features]], tail: int) -> np.ndarray:
    """Text of the given lengths before each item, and behind the last."""
    parts = []
    for text, item in items:
        parts += [np.full(text, 10), np.full(item.rows, PADS[item.modality])]
    return np.concatenate([*parts, np.full(tail, 10)]).astype(np.int32)


def vllm_positions(ids: np.ndarray, items: list[tuple[int, Features]], spec: Spec):
    """The same layout through vLLM's own code, without an engine around it."""
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Model
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    specs, offset = [], 0
    for text, item in items:
        offset += text
        data = {
            f"{item.modality}_grid_thw": torch.tensor(item.grid_thw),
            "second_per_grid_ts": torch.tensor(item.seconds_per_grid),
        }
        held = {name: SimpleNamespace(data=value) for name, value in data.items()}
        place = PlaceholderRange(offset=offset, length=item.rows)
        specs.append(MultiModalFeatureSpec(held, item.modality, str(offset), place))
        offset += item.rows
    vision = SimpleNamespace(
        spatial_merge_size=spec.merge, tokens_per_second=spec.tokens_per_second
    )
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.iter_mm_grid_thw = lambda found: Model.iter_mm_grid_thw(model, found)
    positions, delta = Model.get_mrope_input_positions(model, ids.tolist(), specs)
    return positions.numpy(), len(ids) + delta


SIDES = st.integers(1, 4).map(lambda n: n * SPEC.merge)
VIDEOS = st.builds(
    lambda t, h, w, seconds: features("video", (t, h, w), seconds),
    st.integers(1, 6), SIDES, SIDES, st.floats(0.01, 9),
)  # fmt: skip
IMAGES = st.builds(lambda h, w: features("image", (1, h, w), 0.0), SIDES, SIDES)


@settings(max_examples=150, deadline=None)
@given(
    items=st.lists(st.tuples(st.integers(0, 5), VIDEOS | IMAGES), max_size=4),
    tail=st.integers(1, 5),
    rate=st.sampled_from([1, 2, 25, 0.7]),
)
def test_positions_equal_vllm_s(items, tail, rate):
    spec = replace(SPEC, tokens_per_second=rate)
    ids = sequence(items, tail)
    ours, next_position = mrope_positions(ids, [item for _, item in items], spec)
    theirs, their_next = vllm_positions(ids, items, spec)
    assert ours.dtype == np.int64
    assert np.array_equal(ours, theirs)
    assert next_position == their_next


TIMED = replace(SPEC, family="qwen3_vl", tokens_per_second=None, deepstack_levels=2)


def told(items: list[tuple[int, Features]], tail: int) -> tuple[np.ndarray, list[int]]:
    """The same text and media as Qwen3-VL is told them, and where each item begins."""
    ids, starts = [], []
    for text, item in items:
        ids += [10] * text
        starts.append(len(ids))
        if item.modality == "image":
            ids += [TIMED.image_pad] * item.rows
            continue
        pads = [TIMED.video_pad] * (item.rows // item.grid_thw[0])
        for step in range(item.grid_thw[0]):  # words of various lengths, then the step
            ids += [*[11] * (1 + step % 3), TIMED.vision_start, *pads, TIMED.vision_end]
    return np.array(ids + [10] * tail, np.int32), starts


def vllm_positions_of_qwen3(ids: np.ndarray, items: list[Features], starts: list[int]):
    from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration as Model
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    specs = []
    for item, start in zip(items, starts, strict=True):
        held = {f"{item.modality}_grid_thw": SimpleNamespace(data=torch.tensor(item.grid_thw))}
        place = PlaceholderRange(offset=start, length=item.rows)
        specs.append(MultiModalFeatureSpec(held, item.modality, str(start), place))
    config = SimpleNamespace(
        video_token_id=TIMED.video_pad,
        vision_start_token_id=TIMED.vision_start,
        vision_end_token_id=TIMED.vision_end,
        vision_config=SimpleNamespace(spatial_merge_size=TIMED.merge),
    )
    positions, delta = Model._get_mrope_input_positions(ids.tolist(), specs, config)
    return positions.numpy(), len(ids) + delta


@settings(max_examples=150, deadline=None)
@given(
    items=st.lists(st.tuples(st.integers(0, 5), VIDEOS | IMAGES), max_size=4),
    tail=st.integers(1, 5),
)
def test_positions_where_the_time_is_told_equal_vllm_s(items, tail):
    ids, starts = told(items, tail)
    ours, next_position = mrope_positions(ids, [item for _, item in items], TIMED)
    theirs, their_next = vllm_positions_of_qwen3(ids, [item for _, item in items], starts)
    assert np.array_equal(ours, theirs)
    assert next_position == their_next


def test_a_video_whose_time_is_not_told_does_not_fit_a_family_that_tells_it():
    clip = features("video", (2, 2, 4))
    with pytest.raises(DataError, match="family"):
        mrope_positions(sequence([(1, clip)], 1), [clip], TIMED)


def test_text_after_a_video_continues_at_the_largest_position():
    """Three steps of 1.5 s at 2 positions a second: times 0, 3, 6, so the text goes on at 2 + 7.
    (transformers 5.19 would go on at 2 + max(h, w) / merge = 4.)"""
    clip = features("video", (3, 2, 4), 1.5)
    positions, next_position = mrope_positions(sequence([(2, clip)], 1), [clip], SPEC)
    assert positions[0].tolist() == [0, 1, 2, 2, 5, 5, 8, 8, 9]
    assert positions[1].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 9]
    assert positions[2].tolist() == [0, 1, 2, 3, 2, 3, 2, 3, 9]
    assert next_position == 10


def test_seconds_are_rounded_as_they_travel():
    """0.7 is a little less in float32, so step 5 at 2 a second is truncated to 6, as in vLLM."""
    clip = features("video", (6, 2, 2), 0.7)
    assert mrope_positions(sequence([(0, clip)], 1), [clip], SPEC)[0][0].tolist()[5] == 6


@pytest.mark.parametrize(
    ("items", "given_features"),
    [
        ([features("video", (2, 2, 2))], [features("video", (3, 2, 2))]),
        ([features("video", (2, 2, 2))], []),
        ([features("video", (2, 2, 2))], [features("image", (2, 2, 2), 0.0)]),
        (
            [features("video", (1, 2, 2)), features("video", (2, 2, 2))],
            [features("video", (2, 2, 2)), features("video", (1, 2, 2))],
        ),
    ],
    ids=["too many rows", "no features", "wrong modality", "wrong order"],
)
def test_features_that_do_not_fit_the_prompt_are_refused(items, given_features):
    ids = sequence([(1, item) for item in items], 1)
    with pytest.raises(DataError, match="features"):
        mrope_positions(ids, given_features, SPEC)
