"""Low-rank adapters (LoRA, arXiv 2106.09685) on a frozen model: the only file that touches peft.

A target computes W x + (alpha / rank) B A x; W rests, A and B learn, and B starts at zero. For
everyone else the target is one matrix under the checkpoint's own name, W + (alpha / rank) B A.
Written against peft 0.21 (the range is in pyproject), which is imported only where LoRA is on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from veripo_ray import config

FOLDER = "adapter"  # of a checkpoint
_NAME = "default"  # peft's name of an adapter that got no other
_FILE, _PREFIX = "adapter_model.safetensors", "base_model.model."  # peft's file, and names in it
_BASE = ".base_layer"  # where peft puts the layer that an adapter sits on
# vLLM holds these side by side in one matrix, which it takes whole or not at all
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("o_proj",), ("down_proj",))
_TARGET = re.compile(r"\.layers\.\d+\.(?:self_attn|mlp)\.(\w+_proj)\.(?:weight|bias)$")


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of the checkpoint as the policy has it now. parts: the parameters that it is made
    of; a sharded learner gathers them before it asks for the `value`."""

    parts: tuple[nn.Parameter, ...]
    merge: Callable[..., Tensor] | None = None

    def value(self) -> Tensor:
        """The weight in the model's dtype: no copy, unless it is merged."""
        with torch.no_grad():
            return self.merge(*self.parts) if self.merge else self.parts[0].detach()


def changes(name: str, lora: config.Lora | None) -> bool:
    """Whether a weight of the language model, by the checkpoint's name, is sent after a step.

    With adapters: the targets, and what vLLM holds in one matrix with a target.
    """
    if lora is None:
        return True
    found = _TARGET.search(name)
    if found is None:
        return False
    (together,) = (group for group in _TOGETHER if found[1] in group)
    return any(target in together for target in lora.targets)


def plain_name(name: str) -> str:
    """The name that a parameter has without adapters."""
    return name.replace(_BASE, "")


def is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def add_adapters(model: nn.Module, lora: config.Lora) -> None:
    """Freeze all of `model` and put fresh adapters, in its dtype, on the language model's targets.

    model: transformers' Qwen2.5-VL or Qwen3-VL. torch's generator draws A.
    """
    from peft import inject_adapter_in_model

    dtype = next(model.parameters()).dtype
    inject_adapter_in_model(_peft_config(lora), model, _NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))
        if is_adapter(name):
            parameter.data = parameter.data.to(dtype)
    set_dropout(model, active=False)


def set_dropout(model: nn.Module, *, active: bool) -> None:
    """Whether adapters drop inputs, which only imitation does: GRPO and DPO compare
    log-probabilities with those of the policy that sampled, or of the reference."""
    for name, module in model.named_modules():
        if name.endswith(".lora_dropout"):
            module.train(active)


def merged(model: nn.Module, lora: config.Lora) -> Iterator[tuple[str, Weight]]:
    """Every weight that is sent after a step, by transformers' name: see `changes`."""
    parameters = dict(model.named_parameters())
    scale = lora.alpha / lora.rank
    for name, parameter in parameters.items():
        if is_adapter(name) or not changes(plain_name(name), lora):
            continue
        stem = name.removesuffix(f"{_BASE}.weight")
        if stem == name:
            yield plain_name(name), Weight((parameter,))
        else:
            low = tuple(parameters[f"{stem}.lora_{side}.{_NAME}.weight"] for side in "BA")
            yield plain_name(name), Weight((parameter, *low), partial(_merge, scale))


def _merge(scale: float, weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """weight [out, in] + scale * up [out, rank] @ down [rank, in], summed in float32."""
    return torch.addmm(weight.float(), up.float(), down.float(), alpha=scale).to(weight.dtype)


def save(folder: Path, adapters: Mapping[str, Tensor], lora: config.Lora, base: Path) -> None:
    """Write adapters alone as peft does: what it was trained on is named in adapter_config.json.

    adapters: by transformers' names, as in `named_parameters`.
    """
    folder.mkdir(parents=True)
    tensors = {
        _PREFIX + name.replace(f".{_NAME}.", "."): tensor.to("cpu").contiguous()
        for name, tensor in adapters.items()
    }
    save_file(tensors, folder / _FILE, metadata={"format": "pt"})
    settings = _peft_config(lora)
    settings.base_model_name_or_path = str(base)
    settings.inference_mode = True
    settings.save_pretrained(str(folder))


def load(folder: Path) -> dict[str, Tensor]:
    """Adapters that `save` wrote, by transformers' names."""
    stored = load_file(folder / _FILE)
    return {
        name.removeprefix(_PREFIX).replace(".weight", f".{_NAME}.weight"): tensor
        for name, tensor in stored.items()
    }


def _peft_config(lora: config.Lora) -> Any:
    from peft import LoraConfig

    names = "|".join(lora.targets)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        # the tower has modules of the same names
        target_modules=rf"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.({names})",
    )
