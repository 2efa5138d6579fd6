"""A tiny language model for the `vllm` judge: random weights, a tokenizer that knows yes and no."""

from __future__ import annotations

from pathlib import Path

import torch

from veripo_ray import config
from veripo_ray.verifier.labelled import load


def write(folder: Path) -> None:
    """A Qwen2 of the tiny world's size, its vocabulary that of the labelled cases: so small that
    what serving adds is seen, and not what the model computes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    core.train_from_iterator(
        [case.thinking for case in load("video_qa")] + ["yes no"] * 50, trainer
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    tokenizer.save_pretrained(folder)
    shape = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(shape).float().save_pretrained(folder)


def settings(checkpoint: str) -> config.Judges:
    """Of both sides."""
    return config.Judges(
        vllm=config.VllmJudge(model=checkpoint, dtype="float32", max_model_len=2048)
    )
