"""Qwen3-VL: words tell the time of each temporal grid step, and the tower also makes deepstack
features, which are added to the hidden states behind the first layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from veripo_ray.errors import CheckpointError
from veripo_ray.policy.attention import Layout
from veripo_ray.policy.folder import read_config
from veripo_ray.policy.qwen_vl import Embedded, QwenVL


class Qwen3VL(QwenVL):
    """transformers' Qwen3VLForConditionalGeneration (dense)."""

    model_type = "qwen3_vl"

    @classmethod
    def read_config(cls, checkpoint: str | Path) -> Any:
        from transformers import Qwen3VLConfig

        config = Qwen3VLConfig.from_dict(read_config(checkpoint))
        if not config.text_config.rope_parameters.get("mrope_interleaved"):
            raise CheckpointError(  # transformers interleaves in any case, vLLM as it is told
                f"checkpoint '{checkpoint}' does not say that its positions are interleaved",
                fix='set "mrope_interleaved": true in rope_parameters (or rope_scaling) of its '
                "config.json, if that is how it was trained",
            )
        return config

    @classmethod
    def model_class(cls) -> Any:
        from transformers import Qwen3VLForConditionalGeneration

        return Qwen3VLForConditionalGeneration

    @classmethod
    def numbers(cls, config: Any) -> dict[str, Any]:
        levels = len(config.vision_config.deepstack_visual_indexes)
        return {"tokens_per_second": None, "deepstack_levels": levels}

    @classmethod
    def saved_name(cls, name: str) -> str:
        return name

    def encode(self, patches: Tensor, grids: Tensor) -> tuple[Tensor, ...]:
        made = self.model.model.get_image_features(patches, grids, return_dict=True)
        items = zip(made.pooler_output, *made.deepstack_features, strict=True)
        return tuple(torch.cat(levels, dim=1) for levels in items)

    def hidden(self, inputs: Embedded, positions_3T: Tensor, layout: Layout) -> Tensor:
        deepstack = {
            "visual_pos_masks": inputs.places_T[None],
            "deepstack_visual_embeds": list(inputs.deepstack),
        }
        return self.model.model.language_model(
            inputs_embeds=inputs.rows_TH[None],
            position_ids=positions_3T[:, None],
            use_cache=False,
            layout=layout,
            **deepstack,
        ).last_hidden_state[0]
