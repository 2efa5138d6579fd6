"""Prompts from the checkpoint's chat template, and their placeholders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from veripo_ray.errors import CheckpointError, DataError
from veripo_ray.policy.prompting import build_prompt, expand
from veripo_ray.policy.qwen_vl import load_tokenizer
from veripo_ray.records import Kind, Question


def question(**media) -> Question:
    return Question(id="q", text="how many red", kind=Kind.NUMERIC, gold="3", **media)


@pytest.mark.parametrize(
    ("media", "modalities"),
    [
        ({"video": "clip.mp4"}, ["video"]),
        ({"images": ("a.png", "b.png")}, ["image", "image"]),
        ({}, []),
        ({"video": "clip.mp4", "images": ("a.png",)}, ["video", "image"]),
    ],
)
def test_a_prompt_has_one_placeholder_an_item_and_ends_at_the_assistant_s_turn(
    tokenizer, spec, media, modalities
):
    prompt = build_prompt(tokenizer, question(**media), "plain")
    found = [spec.placeholders[i] for i in prompt.ids.tolist() if i in spec.placeholders]
    assert found == modalities
    assert prompt.ids.dtype == np.int32
    assert "how many red" in prompt.text
    assert prompt.text.rstrip().endswith("<|im_start|>assistant")


def test_expansion_gives_each_item_one_placeholder_a_feature_row(tokenizer, spec, video, image):
    asked = question(video="clip.mp4", images=("a.png",))
    prompt = build_prompt(tokenizer, asked, "plain")
    expanded = expand(prompt.ids, [video, image], spec, tokenizer)
    assert expanded.dtype == np.int32
    assert (expanded == spec.video_pad).sum() == video.rows
    assert (expanded == spec.image_pad).sum() == image.rows
    if spec.tells_time:
        return  # words between the placeholders; the next test knows which
    assert len(expanded) == len(prompt.ids) + video.rows + image.rows - 2
    rest = [i for i in expanded.tolist() if i not in spec.placeholders]
    assert rest == [i for i in prompt.ids.tolist() if i not in spec.placeholders]


def test_expansion_equals_that_of_transformers_processor(
    checkpoint, tokenizer, spec, tower, clip_of
):
    """Two videos at different rates, the second of uneven length, and an image between them."""
    from transformers import AutoProcessor
    from transformers.video_utils import VideoMetadata

    clips = [clip_of(8, 1, 2), clip_of(6, 2, 1, fps=0.7)]
    frame = clip_of(1, 2, 3).frames[0]
    block = "<|vision_start|><|{}_pad|><|vision_end|>"
    text = "and ".join(block.format(kind) for kind in ("video", "image", "video")) + "how many"
    theirs = AutoProcessor.from_pretrained(checkpoint)(
        text=[text],
        images=[frame],
        videos=[torch.from_numpy(clip.frames).permute(0, 3, 1, 2) for clip in clips],
        video_metadata=[
            VideoMetadata(len(clip.frames), fps=clip.fps, frames_indices=[*range(len(clip.frames))])
            for clip in clips
        ],
        do_sample_frames=False,
        do_resize=False,
    )["input_ids"][0]
    first, second = map(tower.encode_clip, clips)
    media = [first, tower.encode_image(frame), second]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert expand(ids, media, spec, tokenizer).tolist() == list(theirs)


def test_a_family_that_tells_the_time_needs_timestamps(tokenizer, spec, video):
    silent = replace(video, timestamps=())
    ids = [spec.vision_start, spec.video_pad, spec.vision_end]
    if not spec.tells_time:
        assert len(expand(ids, [silent], spec, tokenizer)) == 2 + video.rows
        return
    told = tokenizer.decode(expand(ids, [video], spec, tokenizer))
    assert told.startswith("<|vision_start|><0.2 seconds><|vision_start|><|video_pad|>")
    with pytest.raises(DataError, match="no timestamps"):
        expand(ids, [silent], spec, tokenizer)


def test_a_text_prompt_expands_to_itself(tokenizer, spec):
    prompt = build_prompt(tokenizer, question(), "plain")
    assert np.array_equal(expand(prompt.ids, [], spec, tokenizer), prompt.ids)


def test_features_that_differ_from_the_placeholders_are_refused(tokenizer, spec, video, image):
    ids = build_prompt(tokenizer, question(video="clip.mp4"), "plain").ids
    for wrong in ([], [image], [video, video]):
        with pytest.raises(DataError, match="placeholders"):
            expand(ids, wrong, spec, tokenizer)


def test_a_media_token_in_the_question_s_text_is_refused(tokenizer, spec, video):
    asked = Question(
        id="q", text="what is <|video_pad|> here", kind=Kind.NUMERIC, gold="3", video="clip.mp4"
    )
    with pytest.raises(DataError, match="media tokens"):
        expand(build_prompt(tokenizer, asked, "plain").ids, [video], spec, tokenizer)


def test_a_checkpoint_without_chat_template_is_reported(checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.chat_template = None
    with pytest.raises(CheckpointError, match="chat template"):
        build_prompt(tokenizer, question(), "plain")


def test_the_tokenizer_of_a_checkpoint_is_the_one_that_transformers_finds(shipped_checkpoint):
    from transformers import AutoTokenizer

    ours = load_tokenizer(shipped_checkpoint)
    theirs = AutoTokenizer.from_pretrained(shipped_checkpoint)
    assert type(ours) is type(theirs)
    text = build_prompt(theirs, question(video="clip.mp4"), "tinyworld").text
    assert text == build_prompt(ours, question(video="clip.mp4"), "tinyworld").text
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
