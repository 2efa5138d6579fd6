"""Qwen3-VL in vLLM without its vision tower, but with the deepstack features that come in.

vLLM 0.32 takes a model whose tower is not loaded for one without deepstack features, and then
fails at the width of those that are sent. Importing this module makes vLLM load our class in the
model's place; vLLM imports it in every worker, as the home of its `worker_extension_cls`.
"""

from __future__ import annotations

import torch
from vllm import ModelRegistry
from vllm.config import VllmConfig
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration


class Qwen3VLWithoutTower(Qwen3VLForConditionalGeneration):
    """Prepares for deepstack features as its parent does where there is a tower."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        levels = len(self.config.vision_config.deepstack_visual_indexes)
        tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self.use_deepstack = levels > 0
        self.deepstack_num_level = levels
        self.multiscale_dim = self.visual_dim * levels
        self.deepstack_input_embeds = [
            torch.zeros(tokens, self.config.text_config.hidden_size) for _ in range(levels)
        ]
        self.deepstack_input_embeds_num_tokens = 0


class Worker:
    """Adds nothing to vLLM's worker."""


ModelRegistry.register_model("Qwen3VLForConditionalGeneration", Qwen3VLWithoutTower)
