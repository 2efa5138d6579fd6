"""The tower's features are transformers' own, from frames that are neither sampled nor resized."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from veripo_ray.policy.media import Frames

ROUNDING = 2e-6  # of float32, against the largest value


@pytest.fixture(scope="module")
def transformers_model(checkpoint):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def processor(checkpoint):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(checkpoint)


def rows_of(seen) -> np.ndarray:
    """What transformers made of one item, deepstack levels behind the main features."""
    levels = [seen.pooler_output, *getattr(seen, "deepstack_features", ())]
    return torch.cat([items[0] for items in levels], dim=1).numpy()


def test_features_of_a_clip_equal_transformers(tower, clip_of, transformers_model, processor):
    clip = clip_of(8, 2, 5, fps=4.0)
    ours = tower.encode_clip(clip)
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
    batch = processor.video_processor(
        videos=[frames], do_sample_frames=False, do_resize=False, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = rows_of(transformers_model.get_video_features(**batch))
    assert ours.grid_thw == (4, 4, 10) == tuple(batch["video_grid_thw"][0].tolist())
    assert ours.seconds_per_grid == 0.5  # two frames at four a second
    assert ours.values.dtype == np.float32
    assert ours.values.shape == theirs.shape
    assert np.abs(ours.values - theirs).max() < ROUNDING * np.abs(theirs).max()


def test_features_of_an_image_equal_transformers(tower, clip_of, transformers_model, processor):
    frame = clip_of(1, 3, 2, seed=3).frames[0]
    ours = tower.encode_image(frame)
    batch = processor.image_processor(images=[frame], do_resize=False, return_tensors="pt")
    with torch.no_grad():
        theirs = rows_of(transformers_model.get_image_features(**batch))
    assert ours.modality == "image"
    assert ours.grid_thw == (1, 6, 4)
    assert ours.seconds_per_grid == 0.0
    assert ours.values.shape == theirs.shape
    assert np.abs(ours.values - theirs).max() < ROUNDING * np.abs(theirs).max()


def test_clips_of_different_sizes_encode_together_as_they_do_alone(tower, clip_of):
    clips = [clip_of(8, 1, 2), clip_of(4, 5, 9, fps=1.0, seed=1), clip_of(8, 1, 2, seed=2)]
    together = tower.encode([Frames.of_clip(clip, tower.policy.spec) for clip in clips])
    for clip, features in zip(clips, together, strict=True):
        alone = tower.encode_clip(clip)
        assert features.grid_thw == alone.grid_thw
        assert features.seconds_per_grid == alone.seconds_per_grid
        gap = np.abs(features.values - alone.values).max()
        assert gap < ROUNDING * np.abs(alone.values).max()


def test_a_step_s_time_is_the_mean_of_its_frames_since_the_first_frame_of_the_clip(tower, clip_of):
    clip = replace(clip_of(6, 1, 1), seconds=np.array([3.0, 3.5, 4.25, 5.25001, 6.0, 8.0]))
    assert tower.encode_clip(clip).timestamps == (0.25, 1.75, 4.0)
    assert tower.encode_image(clip.frames[0]).timestamps == ()


@pytest.mark.parametrize("part", [np.s_[:3], np.s_[:, 2:], np.s_[:, :, ::2]])
def test_frames_that_do_not_divide_into_patches_are_refused(tower, clip_of, part):
    clip = clip_of(4, 1, 1)
    with pytest.raises(ValueError, match="multiple"):
        tower.encode_clip(replace(clip, frames=clip.frames[part]))
