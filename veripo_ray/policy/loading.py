"""Reading the weights of a checkpoint into transformers' model, as far as they are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from veripo_ray.errors import CheckpointError
from veripo_ray.policy.plugged import CHUNKED, GROUPED, register_attention


def load_model(
    folder: Path,
    model_class: Any,
    config: Any,
    dtype: torch.dtype,
    *,
    tower: bool,
    language: bool,
) -> nn.Module:
    """transformers' model with our attention; a part that is not wanted is not read and None.

    Changes `config`. Raises CheckpointError when weights are missing or cannot be read.
    """
    register_attention()
    if not tower:
        _leave_out(config.vision_config, depth=0, deepstack_visual_indexes=[])
    if not language:
        _leave_out(config.text_config, num_hidden_layers=0, layer_types=[])
    try:
        with _quiet_transformers():
            model, report = model_class.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation={"text_config": GROUPED, "vision_config": "sdpa"},
                output_loading_info=True,
            )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read the weights of checkpoint '{folder}': {error}",
            fix="the folder needs every *.safetensors file that its index names",
        ) from error
    _refuse_gaps(folder, report["missing_keys"])
    if tower:
        model.model.visual.config._attn_implementation = CHUNKED
    else:
        model.model.visual = None
    if not language:
        model.model.language_model, model.lm_head = None, None
    return model


def _leave_out(part: Any, **without_layers: Any) -> None:
    """A part without layers is not read; what is left of it is dropped after loading."""
    for name, value in without_layers.items():
        if hasattr(part, name):
            setattr(part, name, value)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar, and no table of the weights left out on purpose (missing ones raise)."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _refuse_gaps(folder: Path, missing: Sequence[str]) -> None:
    if missing:
        names = sorted(missing)
        raise CheckpointError(
            f"checkpoint '{folder}' lacks {len(names)} weights, among them {', '.join(names[:3])}",
            fix="the folder needs every *.safetensors file that its index names",
        )
