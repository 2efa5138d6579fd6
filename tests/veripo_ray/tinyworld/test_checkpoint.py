"""The tiny checkpoint: real, small, reproducible; transformers loads it with nothing of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from veripo_ray.policy.qwen_vl import read_spec
from veripo_ray.tinyworld import vocabulary
from veripo_ray.tinyworld.checkpoint import build_checkpoint, build_tokenizer

TOKENIZER = build_tokenizer()
MESSAGE = [
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "count red ?"}]}
]


@given(st.lists(st.sampled_from(vocabulary.WORDS), min_size=1, max_size=60))
@settings(max_examples=50)
def test_words_survive_the_tokenizer(words: list[str]) -> None:
    text = " ".join(words)
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == len(words)
    assert TOKENIZER.decode(ids) == text


def test_special_tokens_are_qwens_and_tags_are_plain_words() -> None:
    assert set(vocabulary.SPECIALS) <= set(TOKENIZER.all_special_tokens)
    assert not set(vocabulary.TAGS) & set(TOKENIZER.all_special_tokens)
    assert TOKENIZER.eos_token == "<|im_end|>"
    assert TOKENIZER("<|im_start|>user")["input_ids"] == TOKENIZER.convert_tokens_to_ids(
        ["<|im_start|>", "user"]
    )


def test_a_word_it_does_not_know_becomes_the_unknown_token() -> None:
    assert TOKENIZER("purple")["input_ids"] == [TOKENIZER.unk_token_id]


def test_the_seed_alone_decides_the_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    same = load_file(build_checkpoint(tmp_path / "same", 0) / "model.safetensors")
    other = load_file(build_checkpoint(tmp_path / "other", 1) / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    reference = load_file(tiny_checkpoint / "model.safetensors")
    assert all(torch.equal(reference[name], same[name]) for name in reference)
    assert not torch.equal(reference["lm_head.weight"], other["lm_head.weight"])


def test_nothing_but_special_tokens_is_banned_and_every_id_is_a_word(
    tiny_checkpoint: Path,
) -> None:
    spec = read_spec(tiny_checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    banned = set(tokenizer.convert_ids_to_tokens(list(spec.banned_ids)))
    assert banned == set(vocabulary.SPECIALS) - {"<|im_end|>"}
    assert spec.vocab_size == len(tokenizer)
    assert spec.stop_ids == (tokenizer.eos_token_id,)


def test_the_shipped_checkpoint_is_small(shipped_checkpoint: Path) -> None:
    files = [file for file in shipped_checkpoint.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 5_000_000


@pytest.mark.parametrize("which", ["tiny_checkpoint", "shipped_checkpoint"])
def test_plain_transformers_loads_it_and_reads_a_video(
    which: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(which)
    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    text = processor.apply_chat_template(MESSAGE, add_generation_prompt=True, tokenize=False)
    frames = np.random.default_rng(0).integers(0, 255, (16, 3, 28, 56), np.uint8)
    inputs = processor(
        text=[text],
        videos=[torch.from_numpy(frames)],
        do_sample_frames=False,
        return_tensors="pt",
    )
    assert inputs["video_grid_thw"].tolist() == [[8, 2, 4]]
    assert (inputs["input_ids"] == model.config.video_token_id).sum() == 16
    generated = model.generate(**inputs, max_new_tokens=4)
    assert generated.shape[1] > inputs["input_ids"].shape[1]


def test_the_shipped_checkpoint_has_the_tokenizer_that_the_code_builds(
    shipped_checkpoint: Path,
) -> None:
    shipped = AutoTokenizer.from_pretrained(shipped_checkpoint)
    assert shipped.get_vocab() == TOKENIZER.get_vocab()
    assert shipped.chat_template == TOKENIZER.chat_template
