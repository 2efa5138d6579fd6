"""Qwen2.5-VL behind our own few verbs: the only file that touches transformers' model internals.

Written against transformers 5.19 (the range is in pyproject). A sibling family is another file
with the same verbs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from veripo_ray.errors import CheckpointError, DataError
from veripo_ray.policy import folder as files
from veripo_ray.policy.attention import Layout, grouped_attention
from veripo_ray.policy.folder import load_tokenizer
from veripo_ray.policy.media import Frames, Media, Spec
from veripo_ray.policy.pixels import Pixels

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLConfig

SUPPORTED_FAMILIES = ("qwen2_5_vl",)
GROUPED = "veripo_grouped"  # our attention's name in transformers' register
_TOWER = "model.visual."
_LANGUAGE = "model.language_model."


def read_spec(checkpoint: str | Path) -> Spec:
    """The numbers that prompts, positions and the sampler need, without loading any weight.

    Raises CheckpointError when the folder is missing, incomplete or of an unsupported family.
    """
    return _spec(_config(checkpoint), load_tokenizer(checkpoint), files.stop_ids(checkpoint))


class QwenVL:
    """A Qwen2.5-VL checkpoint: tower, language model or both, with tokenizer and numbers.

    model: the transformers model (for an optimiser or DeepSpeed); parts left out are None in it.
    pixels: what makes frames fit for the tower; None without one. seen: how many clips and images
    came as frames and went through the tower.
    """

    def __init__(
        self, checkpoint: Path, model: nn.Module, tokenizer: Any, spec: Spec, pixels: Pixels | None
    ) -> None:
        self.checkpoint = checkpoint
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        self.pixels = pixels
        self.seen = 0

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
        config = _config(folder)
        tokenizer = load_tokenizer(folder)
        spec = _spec(config, tokenizer, files.stop_ids(folder))
        pixels = Pixels.load(folder) if tower else None
        model = _load_model(folder, config, dtype, tower=tower, language=language)
        return cls(folder, model.to(device).eval(), tokenizer, spec, pixels)

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

    def encode(self, patches: Tensor, grids: Tensor) -> tuple[Tensor, ...]:
        """Features of several clips and images in one pass of the tower.

        patches: [N, channels * temporal_patch * patch**2] as the checkpoint's processors make
        them; grids: int64 [items, 3]. Returns one [N_i, hidden] tensor an item.
        """
        # of a video it computes the same as of images: a clip's grid says that it has more steps
        return self.model.model.get_image_features(patches, grids, return_dict=True).pooler_output

    def see(self, items: Sequence[Frames]) -> tuple[Tensor, ...]:
        """Features [N_i, hidden] of clips and images in one pass of the tower, differentiable."""
        if self.pixels is None:
            raise DataError(
                "frames came to a policy without a tower", fix="load it with tower=True"
            )
        return self.encode(*self.pixels.patches(items, self.device))

    def embed(self, ids_T: Tensor, media: Sequence[Media]) -> Tensor:
        """Token embeddings [T, hidden] with feature rows in place of the media placeholders.

        media: in the order of their placeholders; all frames go through the tower at once. Raises
        DataError on a mismatch.
        """
        embeds_TH = self.model.model.language_model.embed_tokens(ids_T)
        pads = torch.tensor(list(self.spec.placeholders), device=ids_T.device)
        places_T = torch.isin(ids_T, pads)
        rows = sum(item.rows for item in media)
        if (count := int(places_T.sum())) != rows:
            raise DataError(
                f"{count} media placeholders in a batch whose features have {rows} rows",
                fix="expand each prompt with its own features; responses hold no media tokens",
            )
        values = self._values(media)
        if not values:
            return embeds_TH
        return embeds_TH.masked_scatter(
            places_T[:, None], torch.cat([v.to(embeds_TH) for v in values])
        )

    def _values(self, media: Sequence[Media]) -> list[Tensor]:
        """Feature rows of all media, [N_i, hidden] each, and perhaps some more that nobody uses.

        A tower that learns takes part in every pass, if only by a blank image: ranks that share its
        weights or gradients must all come to its collectives, and a step must not depend on how
        media were dealt out to them.
        """
        frames = [item for item in media if isinstance(item, Frames)]
        self.seen += len(frames)
        if not frames and self._tower_learns and torch.is_grad_enabled():
            frames = [self._blank]
        seen = list(self.see(frames)) if frames else []
        ours = iter(seen)
        values = [
            next(ours) if isinstance(item, Frames) else torch.as_tensor(item.values)
            for item in media
        ]
        return [*values, *ours]

    @property
    def _tower_learns(self) -> bool:
        tower = self.model.model.visual
        return tower is not None and any(weight.requires_grad for weight in tower.parameters())

    @property
    def _blank(self) -> Frames:
        """The smallest image that there is."""
        side = self.spec.patch * self.spec.merge
        return Frames.of_image(np.zeros((side, side, 3), np.uint8), self.spec)

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
        """Recompute each layer, of the tower too, in the backward pass instead of keeping its
        activations."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()  # transformers checkpoints only while training; there is no dropout

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

        weights: what trains, under checkpoint names; None takes this model's own (a sharded learner
        gathers and gives them). The rest is this model's, and a part not loaded is the source's.
        """
        own = {saved_name(name): w.detach() for name, w in self.model.named_parameters()}
        if weights is not None:
            if missing := self.trainable().keys() - weights.keys():
                raise ValueError(f"weights to save lack {sorted(missing)[:3]}")
            own |= weights
        stored = files.stored_weights(self.checkpoint, wanted=self._left_out)
        own |= {saved_name(name): weight.to(self.dtype) for name, weight in stored}
        files.write(Path(folder), own, self.checkpoint, self.dtype)

    def _left_out(self, name: str) -> bool:
        """Whether a stored weight is of a part that was not loaded."""
        tower = name.startswith(("visual.", _TOWER))
        return (self.model.model.visual if tower else self.model.model.language_model) is None


def saved_name(name: str) -> str:
    """The name that `save_pretrained` (and Qwen's own checkpoints) give a module's parameter."""
    for prefix, saved in ((_TOWER, "visual."), (_LANGUAGE, "model.")):
        if name.startswith(prefix):
            return saved + name[len(prefix) :]
    return name


def _config(checkpoint: str | Path) -> Qwen2_5_VLConfig:
    from transformers import Qwen2_5_VLConfig

    config = files.read_config(checkpoint)
    family = config.get("model_type")
    if family not in SUPPORTED_FAMILIES:
        raise CheckpointError(
            f"checkpoint '{checkpoint}' is of family '{family}', which is not supported",
            fix=f"use a checkpoint whose model_type is {' or '.join(SUPPORTED_FAMILIES)}",
        )
    settings = Qwen2_5_VLConfig.from_dict(config)
    if "sliding_attention" in settings.text_config.layer_types:
        raise CheckpointError(
            f"checkpoint '{checkpoint}' uses sliding-window attention, which is not supported",
            fix="set use_sliding_window to false in its config.json",
        )
    return settings


def _spec(config: Qwen2_5_VLConfig, tokenizer: Any, stop_ids: tuple[int, ...]) -> Spec:
    vision = config.vision_config
    stops = tuple(dict.fromkeys((tokenizer.eos_token_id, *stop_ids)))
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return Spec(
        family=config.model_type,
        patch=vision.patch_size,
        merge=vision.spatial_merge_size,
        temporal_patch=vision.temporal_patch_size,
        tokens_per_second=vision.tokens_per_second,
        hidden_size=config.text_config.hidden_size,
        vocab_size=config.text_config.vocab_size,
        image_pad=config.image_token_id,
        video_pad=config.video_token_id,
        vision_start=config.vision_start_token_id,
        vision_end=config.vision_end_token_id,
        stop_ids=stops,
        banned_ids=tuple(sorted(special - set(stops))),
    )


def _load_model(
    folder: Path, config: Qwen2_5_VLConfig, dtype: torch.dtype, *, tower: bool, language: bool
) -> nn.Module:
    from transformers import AttentionInterface, Qwen2_5_VLForConditionalGeneration

    AttentionInterface.register(GROUPED, _grouped_attention)
    if not tower:  # a part without layers is not read; what is left of it is dropped below
        config.vision_config.depth = 0
    if not language:
        config.text_config.num_hidden_layers, config.text_config.layer_types = 0, []
    try:
        with _quiet_transformers():
            model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
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
