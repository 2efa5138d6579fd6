"""Qwen2.5-VL: a video is one block of features, and positions tell the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from veripo_ray.errors import CheckpointError
from veripo_ray.policy.attention import Layout
from veripo_ray.policy.folder import read_config
from veripo_ray.policy.qwen_vl import Embedded, QwenVL

_SAVED = {"model.visual.": "visual.", "model.language_model.": "model."}


class Qwen25VL(QwenVL):
    """transformers' Qwen2_5_VLForConditionalGeneration."""

    model_type = "qwen2_5_vl"

    @classmethod
    def read_config(cls, checkpoint: str | Path) -> Any:
        from transformers import Qwen2_5_VLConfig

        config = Qwen2_5_VLConfig.from_dict(read_config(checkpoint))
        if "sliding_attention" in config.text_config.layer_types:
            raise CheckpointError(
                f"checkpoint '{checkpoint}' uses sliding-window attention, which is not supported",
                fix="set use_sliding_window to false in its config.json",
            )
        return config

    @classmethod
    def model_class(cls) -> Any:
        from transformers import Qwen2_5_VLForConditionalGeneration

        return Qwen2_5_VLForConditionalGeneration

    @classmethod
    def numbers(cls, config: Any) -> dict[str, Any]:
        return {"tokens_per_second": config.vision_config.tokens_per_second}

    @classmethod
    def saved_name(cls, name: str) -> str:
        for prefix, saved in _SAVED.items():
            if name.startswith(prefix):
                return saved + name[len(prefix) :]
        return name

    def encode(self, patches: Tensor, grids: Tensor) -> tuple[Tensor, ...]:
        # of a video it computes the same as of images: a clip's grid says that it has more steps
        return self.model.model.get_image_features(patches, grids, return_dict=True).pooler_output

    def hidden(self, inputs: Embedded, positions_3T: Tensor, layout: Layout) -> Tensor:
        return self.model.model.language_model(
            inputs_embeds=inputs.rows_TH[None],
            position_ids=positions_3T[:, None],
            use_cache=False,
            layout=layout,
        ).last_hidden_state[0]
