"""A Qwen video-LLM behind our own few verbs; what its families have in common.

Each family is a sibling file (`qwen2_5_vl`, `qwen3_vl`), and together they are the only files that
touch transformers' model internals. Written against transformers 5.19 (the range is in pyproject).
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from veripo_ray import config
from veripo_ray.errors import CheckpointError, DataError
from veripo_ray.policy import folder as files
from veripo_ray.policy import lora as low_rank
from veripo_ray.policy.attention import Layout
from veripo_ray.policy.folder import load_tokenizer
from veripo_ray.policy.loading import load_model
from veripo_ray.policy.lora import Weight
from veripo_ray.policy.media import Frames, Media, Spec
from veripo_ray.policy.pixels import Pixels


def read_spec(checkpoint: str | Path) -> Spec:
    """The numbers that prompts, positions and the sampler need, without loading any weight.

    Raises CheckpointError when the folder is missing, incomplete or of an unsupported family.
    """
    family = family_of(checkpoint)
    return _spec(family, family.read_config(checkpoint), load_tokenizer(checkpoint), checkpoint)


def family_of(checkpoint: str | Path) -> type[QwenVL]:
    """Raises CheckpointError for a folder without config.json or of an unsupported family."""
    from veripo_ray.policy.qwen2_5_vl import Qwen25VL
    from veripo_ray.policy.qwen3_vl import Qwen3VL

    families = {family.model_type: family for family in (Qwen25VL, Qwen3VL)}
    found = files.read_config(checkpoint).get("model_type")
    if found not in families:
        raise CheckpointError(
            f"checkpoint '{checkpoint}' is of family '{found}', which is not supported",
            fix=f"use a checkpoint whose model_type is {' or '.join(families)} (a dense model)",
        )
    return families[found]


@dataclass(frozen=True, slots=True)
class Embedded:
    """What goes into the first layer, and what is added to the states that come out of the first.

    rows_TH: token embeddings, feature rows in place of the media placeholders; places_T: bool,
    where these are; deepstack: for each of the first layers, [N, hidden] for the N places.
    """

    rows_TH: Tensor
    places_T: Tensor
    deepstack: tuple[Tensor, ...]


class QwenVL(ABC):
    """A checkpoint: tower, language model or both, with tokenizer and numbers.

    model: the transformers model (for an optimiser or DeepSpeed); parts left out are None in it.
    pixels: what makes frames fit for the tower; None without one. seen: how many clips and images
    came as frames and went through the tower. lora: of its adapters; None without any.
    """

    model_type: ClassVar[str]

    def __init__(
        self, checkpoint: Path, model: nn.Module, tokenizer: Any, spec: Spec, pixels: Pixels | None
    ) -> None:
        self.checkpoint = checkpoint
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        self.pixels = pixels
        self.seen = 0
        self.lora: config.Lora | None = None

    @staticmethod
    def load(
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
        folder, family = Path(checkpoint), family_of(checkpoint)
        config = family.read_config(folder)
        tokenizer = load_tokenizer(folder)
        spec = _spec(family, config, tokenizer, folder)
        pixels = Pixels.load(folder) if tower else None
        model = load_model(
            folder, family.model_class(), config, dtype, tower=tower, language=language
        )
        return family(folder, model.to(device).eval(), tokenizer, spec, pixels)

    # --- what a family is -----------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def read_config(cls, checkpoint: str | Path) -> Any:
        """transformers' config. Raises CheckpointError for what is not supported in it."""

    @classmethod
    @abstractmethod
    def model_class(cls) -> Any:
        """transformers' class of the whole model."""

    @classmethod
    @abstractmethod
    def numbers(cls, config: Any) -> dict[str, Any]:
        """`Spec`'s tokens_per_second and deepstack_levels."""

    @classmethod
    @abstractmethod
    def saved_name(cls, name: str) -> str:
        """The name that `save_pretrained` (and Qwen's own checkpoints) give a module's parameter;
        vLLM's weight loader accepts it."""

    @abstractmethod
    def encode(self, patches: Tensor, grids: Tensor) -> tuple[Tensor, ...]:
        """Features of several clips and images in one pass of the tower.

        patches: [N, channels * temporal_patch * patch**2] as the checkpoint's processors make
        them; grids: int64 [items, 3]. Returns one [N_i, feature_size] tensor an item.
        """

    @abstractmethod
    def hidden(self, inputs: Embedded, positions_3T: Tensor, layout: Layout) -> Tensor:
        """Final hidden states [T, hidden] of packed groups that lie in a flat row as `layout` says.

        positions_3T: int64 positions (time, height, width).
        """

    # --- what all can do ------------------------------------------------------------------------

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

    def see(self, items: Sequence[Frames]) -> tuple[Tensor, ...]:
        """Features [N_i, feature_size] of clips and images in one pass of the tower."""
        if self.pixels is None:
            raise DataError(
                "frames came to a policy without a tower", fix="load it with tower=True"
            )
        return self.encode(*self.pixels.patches(items, self.device))

    def embed(self, ids_T: Tensor, media: Sequence[Media]) -> Embedded:
        """Token ids [T] and their media, ready for the first layer.

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
        values = [rows_NF.to(embeds_TH) for rows_NF in self._values(media)]
        if not values:
            return Embedded(embeds_TH, places_T, ())
        if wrong := {rows_NF.shape[1] for rows_NF in values} - {self.spec.feature_size}:
            raise DataError(
                f"features are {wrong} wide, this checkpoint's are {self.spec.feature_size}",
                fix="encode with the tower of a checkpoint of this family and size",
            )
        main_NH, *deepstack = torch.cat(values).split(self.spec.hidden_size, dim=1)
        rows_TH = embeds_TH.masked_scatter(places_T[:, None], main_NH)
        return Embedded(rows_TH, places_T, tuple(level_NH[:rows] for level_NH in deepstack))

    def _values(self, media: Sequence[Media]) -> list[Tensor]:
        """Feature rows of all media, [N_i, feature_size] each, perhaps some more that nobody uses.

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
            next(ours) if isinstance(item, Frames) else _as_tensor(item.values) for item in media
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

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Next-token logits [N, vocab] in the model's dtype."""
        return self.model.lm_head(hidden_NH)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer, of the tower too, in the backward pass instead of keeping its
        activations."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()  # transformers checkpoints only while training
        self.set_dropout(active=False)

    def add_adapters(self, lora: config.Lora) -> None:
        """Train low-rank adapters on the language model, and nothing else."""
        low_rank.add_adapters(self.model, lora)
        self.lora = lora

    def set_dropout(self, *, active: bool) -> None:
        """Switch the adapters' dropout, the only one that there is; it begins switched off."""
        low_rank.set_dropout(self.model, active=active)

    def freeze_tower(self) -> None:
        """Exclude the vision tower from training (the default of every phase)."""
        if self.model.model.visual is not None:
            self.model.model.visual.requires_grad_(False)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that train, by the names a checkpoint has for them (tied ones once).

        vLLM's weight loader accepts these names, unless they are those of adapters.
        """
        named = self.model.named_parameters()
        return {self.saved_name(name): weight for name, weight in named if weight.requires_grad}

    def published(self) -> dict[str, Weight]:
        """What a step changes, by the names a checkpoint has for it; adapters are merged in.

        vLLM's weight loader accepts these names.
        """
        if self.lora is None:
            return {name: Weight((weight,)) for name, weight in self.trainable().items()}
        merged = low_rank.merged(self.model, self.lora)
        return {self.saved_name(name): weight for name, weight in merged}

    def adapters(self) -> dict[str, Weight]:
        """Adapters' own weights by transformers' names; none without LoRA."""
        named = self.model.named_parameters()
        return {name: Weight((weight,)) for name, weight in named if low_rank.is_adapter(name)}

    def save(self, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a whole checkpoint in Hugging Face layout: weights, tokenizer, processor, template.

        weights: what a step changes, under checkpoint names; None takes this model's own (a sharded
        learner gathers and gives them). The rest is the source's.
        """
        published = self.published()
        if weights is None:
            weights = {name: weight.value() for name, weight in published.items()}
        if missing := published.keys() - weights.keys():
            raise ValueError(f"weights to save lack {sorted(missing)[:3]}")
        ours = {low_rank.plain_name(name) for name, _ in self.model.named_parameters()}
        rest = {self.saved_name(name) for name in ours} - weights.keys()
        stored = files.stored_weights(
            self.checkpoint, wanted=lambda n: self.saved_name(n) in rest or self._left_out(n)
        )
        kept = {self.saved_name(name): weight.to(self.dtype) for name, weight in stored}
        files.write(Path(folder), kept | dict(weights), self.checkpoint, self.dtype)

    def save_adapters(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write adapters alone, in peft's layout. weights: those of `adapters`."""
        assert self.lora, "there are no adapters"
        low_rank.save(folder, weights, self.lora, self.checkpoint)

    def stored_adapters(self, folder: Path) -> dict[str, Tensor]:
        """Adapters that `save_adapters` wrote, by the names that `trainable` gives them."""
        return {self.saved_name(name): w for name, w in low_rank.load(folder).items()}

    def _left_out(self, name: str) -> bool:
        """Whether a stored weight is of a part that was not loaded."""
        tower = name.startswith(files.TOWER)
        return (self.model.model.visual if tower else self.model.model.language_model) is None


def _as_tensor(values: np.ndarray) -> Tensor:
    """Features without a copy. Those of Ray are read-only, of which torch warns; nobody writes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.as_tensor(values)


def _spec(family: type[QwenVL], config: Any, tokenizer: Any, checkpoint: str | Path) -> Spec:
    vision, text = config.vision_config, config.text_config
    stops = tuple(dict.fromkeys((tokenizer.eos_token_id, *files.stop_ids(checkpoint))))
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return Spec(
        family=family.model_type,
        patch=vision.patch_size,
        merge=vision.spatial_merge_size,
        temporal_patch=vision.temporal_patch_size,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        image_pad=config.image_token_id,
        video_pad=config.video_token_id,
        vision_start=config.vision_start_token_id,
        vision_end=config.vision_end_token_id,
        stop_ids=stops,
        banned_ids=tuple(sorted(special - set(stops))),
        **family.numbers(config),
    )
