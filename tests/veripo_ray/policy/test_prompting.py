"""Prompts from the checkpoint's chat template, and their placeholders."""

from __future__ import annotations

import numpy as np
import pytest

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
    assert len(expanded) == len(prompt.ids) + video.rows + image.rows - 2
    rest = [i for i in expanded.tolist() if i not in spec.placeholders]
    assert rest == [i for i in prompt.ids.tolist() if i not in spec.placeholders]


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


def test_a_checkpoint_without_chat_template_is_reported(tiny_checkpoint):
    tokenizer = load_tokenizer(tiny_checkpoint)
    tokenizer.chat_template = None
    with pytest.raises(CheckpointError, match="chat template"):
        build_prompt(tokenizer, question(), "plain")
