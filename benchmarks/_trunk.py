"""Text trunks of Qwen2.5-VL with random weights, as checkpoints that every side can load.

`cpu` is what the figures of a CPU are held to: hidden 512, 6 layers, 8 heads, 2 kv heads, a
vocabulary of 2,048; we chose an MLP of 1,408 (SwiGLU's 8/3, up to a multiple of 128) and untied
embeddings. `3b` and `7b` are those of Qwen2.5-VL-3B- and -7B-Instruct. A tower is there because a
checkpoint has one; nothing here uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from veripo_ray.tinyworld import checkpoint as tiny


@dataclass(frozen=True)
class Trunk:
    """Sizes of a language model. std: of its random weights, so that activations stay near 1."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool

    @property
    def std(self) -> float:
        return self.hidden**-0.5


TRUNKS = {
    "tiny": Trunk(64, 2, 2, 1, 128, 256, tied=False),  # of tests
    "cpu": Trunk(512, 6, 8, 2, 1408, 2048, tied=False),
    "mid": Trunk(768, 12, 12, 2, 2048, 8192, tied=False),
    "3b": Trunk(2048, 36, 16, 2, 11008, 151_936, tied=True),
    "7b": Trunk(3584, 28, 28, 4, 18944, 152_064, tied=False),
}
FIRST_WORD = 128  # token ids from here on are nobody's special token


def write_checkpoint(
    folder: Path, name: str, dtype: torch.dtype, device: str, seed: int = 0
) -> Path:
    """A checkpoint in Hugging Face layout with the language model `name`."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = tiny.build_tokenizer()
    tokenizer.save_pretrained(folder)
    config = tiny.build_config(tokenizer).to_dict()
    trunk = TRUNKS[name]
    half = trunk.hidden // trunk.heads // 2
    config["tie_word_embeddings"] = trunk.tied
    config["text_config"] |= {
        "vocab_size": trunk.vocabulary,
        "hidden_size": trunk.hidden,
        "intermediate_size": trunk.mlp,
        "num_hidden_layers": trunk.layers,
        "layer_types": ["full_attention"] * trunk.layers,
        "num_attention_heads": trunk.heads,
        "num_key_value_heads": trunk.kv_heads,
        "max_position_embeddings": 32_768,
        "initializer_range": trunk.std,
        "tie_word_embeddings": trunk.tied,
    }
    config["text_config"]["rope_parameters"] |= {
        "rope_theta": 1e6,
        "mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8],
    }
    config["vision_config"] |= {"out_hidden_size": trunk.hidden, "depth": 1}
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: nn.Module = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
    finally:
        torch.set_default_dtype(default)
    model.to(dtype).save_pretrained(folder)
    return folder
