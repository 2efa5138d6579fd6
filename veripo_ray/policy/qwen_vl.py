"""Qwen2.5-VL behind our own few verbs: the only file that touches transformers' model internals.

Written against transformers 5.19 (the range is in pyproject). A sibling family is another file
with the same verbs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from veripo_ray.errors import CheckpointError, DataError
from veripo_ray.policy.attention import Layout, grouped_attention
from veripo_ray.policy.media import Features, Modality, Spec

SUPPORTED_FAMILIES = ("qwen2_5_vl",)
GROUPED = "veripo_grouped"  # our attention's name in transformers' register
_TOWER = "model.visual."
_LANGUAGE = "model.language_model."
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


def read_spec(checkpoint: str | Path) -> Spec:
    """The numbers that prompts, positions and the sampler need, without loading any weight.

    Raises CheckpointError when the folder is missing, incomplete or of an unsupported family.
    """
    config = _read_config(checkpoint)
    return _spec(config, load_tokenizer(checkpoint), _stop_ids(checkpoint))


def load_tokenizer(checkpoint: str | Path) -> Any:
    """The checkpoint's tokenizer, chat template included. Raises CheckpointError without one."""
    from transformers import AutoTokenizer

    folder = Path(checkpoint)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise CheckpointError(  # transformers would make up an empty one
            f"checkpoint '{checkpoint}' has no tokenizer",
            fix="copy tokenizer.json and tokenizer_config.json into it",
        )
    return AutoTokenizer.from_pretrained(folder)


class QwenVL:
    """A Qwen2.5-VL checkpoint: tower, language model or both, with tokenizer and numbers.

    model: the transformers model (for an optimiser or DeepSpeed); parts left out are None in it.
    """

    def __init__(self, checkpoint: Path, model: nn.Module, tokenizer: Any, spec: Spec) -> None:
        self.checkpoint = checkpoint
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        tower: bool = True,
        language: bool = True,
    ) -> QwenVL:
        """Read a checkpoint in Hugging Face layout; a part that is not wanted is never read.

        Raises CheckpointError for a missing folder, missing weights or an unsupported family.
        """
        folder = Path(checkpoint)
        config = _read_config(folder)
        tokenizer = load_tokenizer(folder)
        spec = _spec(config, tokenizer, _stop_ids(folder))
        model = _load_model(folder, config, dtype, tower=tower, language=language)
        return cls(folder, model.to(device).eval(), tokenizer, spec)

    @property
    def family(self) -> str:
        return self.spec.family

    @property
    def banned_token_ids(self) -> tuple[int, ...]:
        """Every special token except those that end a response; neither side may sample them."""
        return self.spec.banned_ids

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def encode(self, pixels: Tensor, grids: Tensor, modality: Modality) -> tuple[Tensor, ...]:
        """Features of several clips or images in one pass of the tower.

        pixels: [patches, channels * temporal_patch * patch**2] as the checkpoint's processor makes
        them; grids: int64 [items, 3]. Returns one [N_i, hidden] tensor an item.
        """
        inner = self.model.model
        encode = inner.get_video_features if modality == "video" else inner.get_image_features
        return encode(pixels, grids, return_dict=True).pooler_output

    def embed(self, ids_T: Tensor, features: Sequence[Features]) -> Tensor:
        """Token embeddings [T, hidden] with feature rows in place of the media placeholders.

        features: in the order of their placeholders. Raises DataError on a mismatch.
        """
        embeds_TH = self.model.model.language_model.embed_tokens(ids_T)
        pads = torch.tensor(list(self.spec.placeholders), device=ids_T.device)
        places_T = torch.isin(ids_T, pads)
        rows = sum(item.rows for item in features)
        if (count := int(places_T.sum())) != rows:
            raise DataError(
                f"{count} media placeholders in a batch whose features have {rows} rows",
                fix="expand each prompt with its own features; responses hold no media tokens",
            )
        if not features:
            return embeds_TH
        values_NH = torch.cat([torch.as_tensor(item.values) for item in features])
        return embeds_TH.masked_scatter(places_T[:, None], values_NH.to(embeds_TH))

    def hidden(self, embeds_TH: Tensor, positions_3T: Tensor, layout: Layout) -> Tensor:
        """Final hidden states [T, hidden] of packed groups that lie in a flat row as `layout` says.

        positions_3T: int64 positions (time, height, width).
        """
        return self.model.model.language_model(
            inputs_embeds=embeds_TH[None],
            position_ids=positions_3T[:, None],
            attention_mask={"full_attention": None},  # ours needs none
            use_cache=False,
            layout=layout,
        ).last_hidden_state[0]

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Next-token logits [N, vocab] in the model's dtype."""
        return self.model.lm_head(hidden_NH)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each decoder layer in the backward pass instead of keeping its activations."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.model.language_model.train()  # transformers checkpoints only while training

    def freeze_tower(self) -> None:
        """Exclude the vision tower from training (the default of every phase)."""
        if self.model.model.visual is not None:
            self.model.model.visual.requires_grad_(False)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that train, by the names a checkpoint has for them (tied ones once).

        vLLM's weight loader accepts these names.
        """
        named = self.model.named_parameters()
        return {saved_name(name): weight for name, weight in named if weight.requires_grad}

    def save(self, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a whole checkpoint in Hugging Face layout: weights, tokenizer, processor, template.

        weights: the language weights under checkpoint names; None takes this model's own (a
        sharded learner gathers and gives them). Parts not loaded here come from the source.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        own = {saved_name(name): weight for name, weight in self.model.named_parameters()}
        state = {name: weight.detach() for name, weight in (weights or own).items()}
        missing = {n: w for n, w in own.items() if n not in state}
        state |= {name: weight.detach() for name, weight in missing.items()}
        state |= {n: w.to(self.dtype) for n, w in _source_weights(self.checkpoint, skip=state)}
        _write_weights(folder, state)
        _copy_sidecars(self.checkpoint, folder, self.dtype)


def saved_name(name: str) -> str:
    """The name that `save_pretrained` (and Qwen's own checkpoints) give a module's parameter."""
    for prefix, saved in ((_TOWER, "visual."), (_LANGUAGE, "model.")):
        if name.startswith(prefix):
            return saved + name[len(prefix) :]
    return name


def _read_config(checkpoint: str | Path) -> dict[str, Any]:
    path = Path(checkpoint) / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint '{checkpoint}' has no config.json",
            fix="give a folder in Hugging Face layout (config.json, *.safetensors, tokenizer)",
        )
    config = json.loads(path.read_text())
    family = config.get("model_type")
    if family not in SUPPORTED_FAMILIES:
        raise CheckpointError(
            f"checkpoint '{checkpoint}' is of family '{family}', which is not supported",
            fix=f"use a checkpoint whose model_type is {' or '.join(SUPPORTED_FAMILIES)}",
        )
    return config


def _stop_ids(checkpoint: str | Path) -> tuple[int, ...]:
    path = Path(checkpoint) / "generation_config.json"
    stop = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    return () if stop is None else tuple(stop) if isinstance(stop, list) else (stop,)


def _spec(config: dict[str, Any], tokenizer: Any, stop_ids: tuple[int, ...]) -> Spec:
    text, vision = config.get("text_config", config), config["vision_config"]
    stops = tuple(dict.fromkeys((tokenizer.eos_token_id, *stop_ids)))
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return Spec(
        family=config["model_type"],
        patch=vision.get("patch_size", 14),
        merge=vision.get("spatial_merge_size", 2),
        temporal_patch=vision.get("temporal_patch_size", 2),
        tokens_per_second=vision.get("tokens_per_second", 1.0),
        hidden_size=text["hidden_size"],
        vocab_size=text["vocab_size"],
        image_pad=config["image_token_id"],
        video_pad=config["video_token_id"],
        vision_start=config["vision_start_token_id"],
        vision_end=config["vision_end_token_id"],
        stop_ids=stops,
        banned_ids=tuple(sorted(special - set(stops))),
    )


def _load_model(
    folder: Path, config: dict[str, Any], dtype: torch.dtype, *, tower: bool, language: bool
) -> nn.Module:
    from transformers import (
        AttentionInterface,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    AttentionInterface.register(GROUPED, _grouped_attention)
    settings = Qwen2_5_VLConfig.from_dict(config)
    if "sliding_attention" in settings.text_config.layer_types:
        raise CheckpointError(
            f"checkpoint '{folder}' uses sliding-window attention, which is not supported",
            fix="set use_sliding_window to false in its config.json",
        )
    if not tower:  # a part without layers is not read; what is left of it is dropped below
        settings.vision_config.depth = 0
    if not language:
        settings.text_config.num_hidden_layers, settings.text_config.layer_types = 0, []

    try:
        with _quiet_transformers():
            model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                folder,
                config=settings,
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
    if not tower:
        model.model.visual = None
    if not language:
        model.model.language_model, model.lm_head = None, None
    return model


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


def _grouped_attention(
    module: nn.Module,  # noqa: ARG001 (transformers' signature)
    query_1HTD: Tensor,
    key_1HTD: Tensor,
    value_1HTD: Tensor,
    attention_mask: None,  # noqa: ARG001
    *,
    scaling: float,
    layout: Layout,
    **_: Any,
) -> tuple[Tensor, None]:
    """`grouped_attention` as transformers calls an attention function."""
    output_THD = grouped_attention(query_1HTD[0], key_1HTD[0], value_1HTD[0], layout, scaling)
    return output_THD[None], None


def _refuse_gaps(folder: Path, missing: Sequence[str]) -> None:
    if missing:
        names = sorted(missing)
        raise CheckpointError(
            f"checkpoint '{folder}' lacks {len(names)} weights, among them {', '.join(names[:3])}",
            fix="the folder needs every *.safetensors file that its index names",
        )


def _source_weights(folder: Path, skip: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118 (not a mapping)
                saved = saved_name(name)
                if saved not in skip:
                    yield saved, reader.get_tensor(name)


def _write_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    from huggingface_hub import save_torch_state_dict

    tensors = {name: state[name].to("cpu").contiguous() for name in sorted(state)}
    save_torch_state_dict(tensors, folder, metadata={"format": "pt"})


def _copy_sidecars(source: Path, folder: Path, dtype: torch.dtype) -> None:
    """Config, tokenizer, processor and template are those of the source, but for the dtype."""
    for path in source.iterdir():
        if path.is_file() and not any(path.match(pattern) for pattern in _WEIGHT_FILES):
            shutil.copyfile(path, folder / path.name)
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
