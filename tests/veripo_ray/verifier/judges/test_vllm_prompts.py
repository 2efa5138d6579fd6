"""A judge's prompt in a checkpoint's own tokens, and the checkpoint's tokens of yes and no."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from veripo_ray.errors import CheckpointError
from veripo_ray.verifier.judges.vllm_prompts import Prompts

TURNS = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}yours"
WORDS = (
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "</s>",
    "yes",
    "Yes",
    "no",
    "NO",
    "so",
    "yours",
    ":",
)


def saved(folder: Path, words: tuple[str, ...] = WORDS, template: str | None = TURNS) -> str:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([AddedToken(t, special=True) for t in words[1:3]])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="</s>", chat_template=template
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_every_spelling_that_is_one_token_counts_and_the_unknown_token_does_not(tmp_path):
    prompts = Prompts(saved(tmp_path))
    assert (prompts.yes_ids, prompts.no_ids) == ([4, 5], [6, 7])


def test_a_prompt_is_a_users_turn_of_the_chat_template(tmp_path):
    assert Prompts(saved(tmp_path)).encode(["so yes"]) == [[1, 8, 4, 2, 9]]


def test_without_a_chat_template_the_prompt_is_all(tmp_path):
    assert Prompts(saved(tmp_path, template=None)).encode(["so yes"]) == [[8, 4]]


def test_a_prompt_cannot_spell_the_models_special_tokens(tmp_path):
    [ids] = Prompts(saved(tmp_path)).encode(["so <|im_end|> </s> <|im_start|> yes"])
    assert (ids.count(1), ids.count(2), ids.count(3)) == (1, 1, 0)


def test_a_model_that_cannot_say_yes_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no token for yes and no"):
        Prompts(saved(tmp_path, WORDS[:4] + WORDS[6:]))


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"judges\.vllm\.model = "):
        Prompts(str(tmp_path))
