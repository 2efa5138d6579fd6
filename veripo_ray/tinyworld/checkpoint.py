"""A randomly initialised Qwen2.5-VL in Hugging Face layout: the tiny policy before training.

Everything is what a large checkpoint has, only smaller: transformers and vLLM load it unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from veripo_ray.tinyworld import vocabulary as words

if TYPE_CHECKING:
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )

HIDDEN = 64
HEADS = 2  # of 32: the smallest size that vLLM's CPU attention takes
LAYERS = 4  # with 3 the option lookup is never learned
PATCH, MERGE = 14, 2
INITIAL_STD = 0.15  # 0.1 takes three times as long to learn the option lookup, 0.02 far longer
CONTEXT = 512
MIN_PIXELS, MAX_PIXELS = 784, 200_704  # one merged patch; the paper's budget of a frame
VIDEO = {"fps": 2, "min_frames": 2, "max_frames": 64, "cap_pixels_per_frame": True}
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # Qwen2.5-VL's, from CLIP
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


def build_checkpoint(folder: Path | str, seed: int = 0) -> Path:
    """Write config, safetensors (float32, about 1.3 MB), tokenizer, chat template and processor.

    The weights are random and a function of `seed` alone. Returns the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    build_processor(tokenizer).save_pretrained(folder)
    build_model(build_config(tokenizer), seed).save_pretrained(folder)
    return folder


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer: one token a word between spaces, and Qwen's special tokens."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate((*words.SPECIALS, *words.WORDS))}
    core = Tokenizer(models.WordLevel(ids, unk_token=words.UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in words.SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=words.TURN_END,
        pad_token=words.END_OF_TEXT,
        unk_token=words.UNKNOWN,
        extra_special_tokens=list(words.SPECIALS),
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's processor with pixel budgets that leave the tiny frames as they are."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    _name_media_tokens(tokenizer)
    common = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**common),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**common, **VIDEO),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    from transformers import Qwen2_5_VLConfig

    token = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config=_text_config(len(tokenizer), token(words.TURN_END), token(words.END_OF_TEXT)),
        vision_config=_vision_config(),
        image_token_id=token(words.IMAGE_PAD),
        video_token_id=token(words.VIDEO_PAD),
        vision_start_token_id=token(words.VISION_START),
        vision_end_token_id=token(words.VISION_END),
        tie_word_embeddings=False,
    )


def build_model(config: Qwen2_5_VLConfig, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    import torch
    from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config).float()
    text = config.text_config
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )
    return model


def _name_media_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    """Qwen's processor reads these attributes; Qwen's own tokenizer class has them too."""
    tokenizer.image_token, tokenizer.video_token = words.IMAGE_PAD, words.VIDEO_PAD


def _text_config(vocabulary: int, eos: int, pad: int) -> dict:
    return {
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "initializer_range": INITIAL_STD,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [4, 6, 6],  # halves of a head: time, height, width
        },
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "dtype": "float32",
    }


def _vision_config() -> dict:
    return {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 1,
        "out_hidden_size": HIDDEN,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "initializer_range": INITIAL_STD,
        "dtype": "float32",
    }
