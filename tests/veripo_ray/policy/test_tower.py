"""The tower's features are transformers' own, from frames that are neither sampled nor resized."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from veripo_ray.policy.media import Frames


@pytest.fixture(scope="module")
def transformers_model(tiny_checkpoint):
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()


@pytest.fixture(scope="module")
def processor(tiny_checkpoint):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_checkpoint)


def test_features_of_a_clip_equal_transformers(tower, clip_of, transformers_model, processor):
    clip = clip_of(8, 56, 140, fps=4.0)
    ours = tower.encode_clip(clip)
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
    batch = processor.video_processor(videos=[frames], do_sample_frames=False, return_tensors="pt")
    with torch.no_grad():
        theirs = transformers_model.get_video_features(**batch).pooler_output[0]
    assert ours.grid_thw == (4, 4, 10) == tuple(batch["video_grid_thw"][0].tolist())
    assert ours.seconds_per_grid == 0.5  # two frames at four a second
    assert ours.values.dtype == np.float32
    assert np.abs(ours.values - theirs.numpy()).max() < 1e-6


def test_features_of_an_image_equal_transformers(tower, clip_of, transformers_model, processor):
    frame = clip_of(1, 84, 56, seed=3).frames[0]
    ours = tower.encode_image(frame)
    batch = processor.image_processor(images=[frame], return_tensors="pt")
    with torch.no_grad():
        theirs = transformers_model.get_image_features(**batch).pooler_output[0]
    assert ours.modality == "image"
    assert ours.grid_thw == (1, 6, 4)
    assert ours.seconds_per_grid == 0.0
    assert np.abs(ours.values - theirs.numpy()).max() < 1e-6


def test_clips_of_different_sizes_encode_together_as_they_do_alone(tower, clip_of):
    clips = [clip_of(8, 28, 56), clip_of(4, 140, 252, fps=1.0, seed=1), clip_of(8, 28, 56, seed=2)]
    together = tower.encode([Frames.of_clip(clip, tower.policy.spec) for clip in clips])
    for clip, features in zip(clips, together, strict=True):
        alone = tower.encode_clip(clip)
        assert features.grid_thw == alone.grid_thw
        assert features.seconds_per_grid == alone.seconds_per_grid
        assert np.abs(features.values - alone.values).max() < 2e-6


def test_a_step_s_time_is_the_mean_of_its_frames_since_the_first_frame_of_the_clip(tower, clip_of):
    clip = replace(clip_of(6, 28, 28), seconds=np.array([3.0, 3.5, 4.25, 5.25, 6.0, 8.0]))
    assert tower.encode_clip(clip).timestamps == (0.25, 1.75, 4.0)
    assert tower.encode_image(clip.frames[0]).timestamps == ()


@pytest.mark.parametrize("shape", [(3, 28, 28), (4, 30, 28), (4, 28, 14)])
def test_frames_that_do_not_divide_into_patches_are_refused(tower, clip_of, shape):
    with pytest.raises(ValueError, match="multiple"):
        tower.encode_clip(clip_of(*shape))
