"""The sizes of a model that memory depends on, from its config.json alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from veripo_ray import config
from veripo_ray.errors import CheckpointError
from veripo_ray.models import local_folder
from veripo_ray.policy.config_file import read_config

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
_FRAME_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Tower:
    """The vision tower's; parameters as stored, deepstack and the merger included."""

    depth: int
    hidden: int
    patch: int
    merge: int
    temporal: int
    feature_size: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """The language model's sizes, and its tower's. parameters: without the tower's; `tied`: the
    head is the embeddings, and counts once."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    tower: Tower

    @property
    def attention(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all key heads, which is that of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        h, q, kv = self.hidden, self.attention, self.kv
        matrices = h * (q + 2 * kv) + q * h + 3 * h * self.intermediate
        if self.family == "qwen2_5_vl":
            return matrices + q + 2 * kv + 2 * h  # biases of q, k, v; two norms
        return matrices + 2 * self.head_dim + 2 * h  # norms of q and k; two norms

    @property
    def parameters(self) -> int:
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer_parameters + self.hidden

    def adapters(self, lora: config.Lora) -> int:
        """Parameters of LoRA adapters: rank x (inputs + outputs) of every target."""
        h, q, kv, i = self.hidden, self.attention, self.kv, self.intermediate
        ends = {
            "q_proj": h + q,
            "k_proj": h + kv,
            "v_proj": h + kv,
            "o_proj": q + h,
            "gate_proj": h + i,
            "up_proj": h + i,
            "down_proj": i + h,
        }
        return self.layers * lora.rank * sum(ends[target] for target in lora.targets)

    @classmethod
    def of(cls, model: str) -> Geometry:
        """Of a checkpoint on this machine; where there is none, of the known model of that name.
        The Hub is not asked.

        Raises CheckpointError for neither, or another family.
        """
        if folder := local_folder(model, weights=False):
            return cls.of_config(read_config(folder), model)
        name = model.rpartition("/")[2].partition("@")[0]
        if name not in known_models():
            raise CheckpointError(
                f"model = {model} is not on this machine, so its size is not known",
                fix=f"give a folder, or one of {', '.join(known_models())}",
            )
        return cls.of_config(known_models()[name], model)

    @classmethod
    def of_config(cls, raw: Mapping[str, Any], origin: str) -> Geometry:
        """raw: config.json, with the language model's settings in `text_config` or, as older
        checkpoints have them, beside it."""
        family = raw.get("model_type")
        if family not in FAMILIES:
            raise CheckpointError(
                f"checkpoint '{origin}' is of family '{family}', which is not supported",
                fix=f"use a checkpoint whose model_type is {' or '.join(FAMILIES)} (a dense model)",
            )
        text = raw.get("text_config") or raw
        try:
            heads = text["num_attention_heads"]
            return cls(
                family=family,
                hidden=text["hidden_size"],
                layers=text["num_hidden_layers"],
                heads=heads,
                kv_heads=text["num_key_value_heads"],
                head_dim=text.get("head_dim") or text["hidden_size"] // heads,
                intermediate=text["intermediate_size"],
                vocab=text["vocab_size"],
                tied=raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
                tower=_tower(family, raw["vision_config"]),
            )
        except KeyError as missing:
            raise CheckpointError(
                f"checkpoint '{origin}': its config.json has no {missing}",
                fix="copy the config.json that came with the model",
            ) from missing


@cache
def known_models() -> dict[str, dict[str, Any]]:
    """config.json of models by the name of their folder; the file tells its source."""
    file = resources.files("veripo_ray.placement") / "known_models.json"
    return json.loads(file.read_text())["models"]


def _tower(family: str, raw: Mapping[str, Any]) -> Tower:
    # What a config.json leaves out are these in transformers, for both families.
    patch, merge = raw.get("patch_size", 14), raw.get("spatial_merge_size", 2)
    temporal, depth, hidden = raw.get("temporal_patch_size", 2), raw["depth"], raw["hidden_size"]
    out, wide = raw["out_hidden_size"], raw["intermediate_size"]
    merged = hidden * merge**2
    embed = _FRAME_CHANNELS * temporal * patch**2 * hidden
    attention = 4 * hidden**2 + 4 * hidden
    merger = merged**2 + merged + merged * out + out  # two linear layers; its norm apart
    if family == "qwen2_5_vl":
        block = attention + 3 * hidden * wide + 2 * wide + hidden + 2 * hidden
        return Tower(
            depth, hidden, patch, merge, temporal, out, embed + depth * block + merger + hidden
        )
    levels = len(raw["deepstack_visual_indexes"])
    block = attention + 2 * hidden * wide + wide + hidden + 4 * hidden
    positions = raw["num_position_embeddings"] * hidden
    mergers = merger + 2 * hidden + levels * (merger + 2 * merged)
    parameters = embed + hidden + positions + depth * block + mergers
    return Tower(depth, hidden, patch, merge, temporal, out * (1 + levels), parameters)
