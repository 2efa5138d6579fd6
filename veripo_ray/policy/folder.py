"""A checkpoint folder in Hugging Face layout: what is read beside the weights, and writing one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from veripo_ray.errors import CheckpointError
from veripo_ray.policy.config_file import read_config

TOWER = ("visual.", "model.visual.")  # how stored names of the vision tower's weights begin
# Tokenizers of no model's own. AutoTokenizer comes to the same, by way of all models: 1.5 s of CPU.
_GENERAL = ("TokenizersBackend", "PreTrainedTokenizerFast")
_SIDECARS = ("*.json", "*.jinja", "*.txt", "*.model")  # config, tokenizer, processor, template


def load_tokenizer(folder: str | Path) -> Any:
    """The checkpoint's tokenizer, chat template included. Raises CheckpointError without one."""
    if not any((Path(folder) / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise CheckpointError(  # transformers would make up an empty one
            f"checkpoint '{folder}' has no tokenizer",
            fix="copy tokenizer.json and tokenizer_config.json into it",
        )
    if _class_of_tokenizer(Path(folder)) in _GENERAL:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _class_of_tokenizer(folder: Path) -> str | None:
    try:
        return json.loads((folder / "tokenizer_config.json").read_text()).get("tokenizer_class")
    except (OSError, ValueError, AttributeError):
        return None  # transformers says what is wrong


def load_processors(folder: str | Path) -> tuple[Any, Any]:
    """The checkpoint's video and image processors. Raises CheckpointError without them."""
    from transformers import AutoImageProcessor, AutoVideoProcessor

    try:
        return AutoVideoProcessor.from_pretrained(folder), AutoImageProcessor.from_pretrained(
            folder
        )
    except OSError as error:
        raise CheckpointError(
            f"checkpoint '{folder}' does not say how its tower wants pixels",
            fix="copy processor_config.json or preprocessor_config.json into it",
        ) from error


def stop_ids(folder: str | Path) -> tuple[int, ...]:
    """Tokens that end a response according to generation_config.json, if there is one."""
    path = Path(folder) / "generation_config.json"
    stop = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    return () if stop is None else tuple(stop) if isinstance(stop, list) else (stop,)


def stored_weights(folder: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    """Stored weights whose stored name is wanted, one at a time."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as reader:
            for name in filter(wanted, reader.keys()):
                yield name, reader.get_tensor(name)


def write(folder: Path, weights: Mapping[str, Tensor], source: Path, dtype: torch.dtype) -> None:
    """Write weights as safetensors, beside the source checkpoint's config, tokenizer and so on."""
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: weights[name].to("cpu").contiguous() for name in sorted(weights)}
    save_torch_state_dict(tensors, folder, metadata={"format": "pt"})
    for path in {path for pattern in _SIDECARS for path in source.glob(pattern)}:
        if not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    config = _with_dtype(read_config(source), str(dtype).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    config = {name: value for name, value in config.items() if name != "torch_dtype"}
    for part in ("text_config", "vision_config"):
        if part in config:
            config[part] = config[part] | {"dtype": dtype}
    return config | {"dtype": dtype}
