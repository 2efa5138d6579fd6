"""What vLLM could not answer is refused before it sees it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.errors import DataError
from veripo_ray.policy.media import Features
from veripo_ray.policy.qwen_vl import load_tokenizer, read_spec
from veripo_ray.records import Rollout
from veripo_ray.sampler.requests import Sampled, SampleRequest, checked_prompt

LIMITS = {"max_tokens": 8, "max_model_len": 64}


@pytest.fixture(scope="module")
def spec(tiny_checkpoint):
    return read_spec(tiny_checkpoint)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return load_tokenizer(tiny_checkpoint)


@pytest.fixture
def request_(spec):
    ids = np.array([20, spec.vision_start, spec.video_pad, spec.vision_end, 21], dtype=np.int32)
    values = np.zeros((4, spec.hidden_size), dtype=np.float32)
    return SampleRequest("q7", ids, (Features("video", values, (2, 2, 4), 1.0),))


def test_a_prompt_comes_back_with_one_token_a_feature_row(spec, tokenizer, request_):
    prompt = checked_prompt(request_, spec, tokenizer, **LIMITS)
    pad, start, end = spec.video_pad, spec.vision_start, spec.vision_end
    assert prompt.tolist() == [20, start, pad, pad, pad, pad, end, 21]


@pytest.mark.parametrize(("rows", "extra"), [(3, 0), (5, 0), (4, -1), (4, 1)])
def test_features_of_a_wrong_shape_are_named(spec, tokenizer, request_, rows, extra):
    values = np.zeros((rows, spec.hidden_size + extra), dtype=np.float32)
    wrong = replace(request_, features=(replace(request_.features[0], values=values),))
    with pytest.raises(DataError, match=r"'q7': video features of shape \(\d+, \d+\), but a grid"):
        checked_prompt(wrong, spec, tokenizer, **LIMITS)


def test_placeholders_without_features_are_named(spec, tokenizer, request_):
    with pytest.raises(DataError, match="'q7': the prompt has placeholders"):
        checked_prompt(replace(request_, features=()), spec, tokenizer, **LIMITS)


@pytest.mark.parametrize("ids", [[], [-1, 5], [5, 10_000]])
def test_prompts_that_are_not_of_the_vocabulary_are_named(spec, tokenizer, ids):
    with pytest.raises(DataError, match="'q8': the prompt is empty or has ids outside"):
        checked_prompt(
            SampleRequest("q8", np.array(ids, dtype=np.int32)), spec, tokenizer, **LIMITS
        )


def test_a_prompt_too_long_for_the_engine_is_named(spec, tokenizer, request_):
    with pytest.raises(DataError, match="'q7': 8 prompt tokens and max_tokens = 57 exceed"):
        checked_prompt(request_, spec, tokenizer, max_tokens=57, max_model_len=64)
    assert len(checked_prompt(request_, spec, tokenizer, max_tokens=56, max_model_len=64)) == 8


@given(st.lists(st.tuples(st.text(), st.integers(0, 5), st.sampled_from(["stop", "length"]))))
def test_a_group_that_travels_is_the_same_afterwards(
    rows: list[tuple[str, int, Literal["stop", "length"]]],
) -> None:
    rollouts = tuple(
        Rollout(
            text=text,
            token_ids=np.arange(length, dtype=np.int32) + number,
            logprobs=-np.arange(length, dtype=np.float32) / 3,
            finish_reason=reason,
            policy_version=number,
        )
        for number, (text, length, reason) in enumerate(rows)
    )
    buffers: list[pickle.PickleBuffer] = []
    group = Sampled("q", np.array([7, 8], np.int32), rollouts)
    sent = pickle.dumps(group, protocol=5, buffer_callback=buffers.append)
    back = pickle.loads(sent, buffers=buffers)
    assert len(buffers) == 2
    assert (back.id, back.prompt_ids.tolist(), back.rollouts) == ("q", [7, 8], rollouts)
    dtypes = {(r.token_ids.dtype, r.logprobs.dtype) for r in back.rollouts}
    assert dtypes <= {(np.dtype(np.int32), np.dtype(np.float32))}
