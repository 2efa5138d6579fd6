"""The ways of doing one update of a group or a pair that the benchmarks compare.

A side holds a model and an optimiser (the same for all: AdamW, fused, in the weights' dtype) and
does whole updates: forward, loss, backward, step. Prompts are text: what a tower costs is another
benchmark's subject, and the other trainers feed media each in its own way.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from _trunk import FIRST_WORD
from torch import Tensor, nn

from veripo_ray.compat import stand_in_flash_attn
from veripo_ray.policy.grouped import Packed, micro_batches, response_logprobs
from veripo_ray.policy.qwen_vl import QwenVL


@dataclass(frozen=True)
class Shape:
    """A prompt of P tokens and G responses of R."""

    P: int
    R: int
    G: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        return cls(*map(int, text.split(",")))

    @property
    def limit(self) -> float:
        """How many times more tokens G sequences have than one group."""
        return self.G * (self.P + self.R) / (self.P + self.G * self.R)


@dataclass(frozen=True)
class Setting:
    """What all sides train on. tokens: of one micro-batch, None for everything at once."""

    folder: str
    shape: Shape
    device: str
    dtype: str
    tokens: int | None

    @property
    def key(self) -> tuple[str, str, str]:
        """What a model is loaded by."""
        return self.folder, self.dtype, self.device

    @cached_property
    def ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Random prompt [P] and responses [G, R], int32, of plain tokens."""
        vocabulary = json.loads(Path(self.folder, "config.json").read_text())["text_config"]
        rng = np.random.default_rng(0)
        size = (self.shape.P + self.shape.G * self.shape.R,)
        ids = rng.integers(FIRST_WORD, vocabulary["vocab_size"], size).astype(np.int32)
        return ids[: self.shape.P], ids[self.shape.P :].reshape(self.shape.G, self.shape.R)

    def sequences(self) -> Tensor:
        """[G, P + R] int64: the prompt repeated before every response."""
        prompt, responses = self.ids
        rows = np.concatenate([np.tile(prompt, (len(responses), 1)), responses], axis=1)
        return torch.from_numpy(rows).long().to(self.device)

    def cuts(self) -> list[slice]:
        """Sequences in micro-batches, for sides that repeat the prompt."""
        length = self.shape.P + self.shape.R
        rows = self.shape.G if self.tokens is None else max(1, self.tokens // length)
        return [slice(i, i + rows) for i in range(0, self.shape.G, rows)]


class Side(ABC):
    """One way of doing the update. `losses` yields a scalar a micro-batch, each to go backward
    before the next; `logprobs` gives [G, R] without gradient."""

    model: nn.Module

    def __init__(self, setting: Setting, model: nn.Module) -> None:
        self.setting = setting
        self.model = model
        self.optimizer = _optimizer(model)

    @abstractmethod
    def losses(self) -> Iterator[Tensor]: ...

    @abstractmethod
    def logprobs(self) -> Tensor: ...

    def update(self) -> None:
        for loss in self.losses():
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Grouped(Side):
    """Our own model on a group, or, for `repeated`, on as many groups of one response."""

    def __init__(self, setting: Setting, *, repeated: bool = False) -> None:
        self.policy = our_policy(*setting.key)
        super().__init__(setting, self.policy.model)
        prompt, responses = setting.ids
        rows = [(row,) for row in responses] if repeated else [tuple(responses)]
        packed = [Packed(prompt, (), row) for row in rows]
        budget = setting.tokens or sum(group.tokens for group in packed)
        self.parts = [[packed[i] for i in part] for part in micro_batches(packed, budget)]

    def scores(self) -> Iterator[Tensor]:
        """[responses, R] of a micro-batch."""
        for part in self.parts:
            scored = response_logprobs(self.policy, part)
            yield torch.stack([row for group in scored for row in group])

    @torch.no_grad()
    def logprobs(self) -> Tensor:
        return torch.cat(list(self.scores()))


@cache
def our_policy(folder: str, dtype: str, device: str) -> QwenVL:
    """Without banned tokens: the others ban none."""
    policy = QwenVL.load(folder, dtype=getattr(torch, dtype), device=device, tower=False)
    policy.spec = replace(policy.spec, banned_ids=())
    if device == "cuda":
        policy.enable_gradient_checkpointing()
    return policy


@cache
def their_model(folder: str, dtype: str, device: str) -> nn.Module:
    """transformers' own model of the same checkpoint, as TRL and OpenRLHF train it."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    model.model.visual = None
    if device == "cuda":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = False
    return model.to(device).train()


@cache
def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=True)


def forget_models() -> None:
    """Free what this process has loaded."""
    for cached in (our_policy, their_model, _optimizer):
        cached.cache_clear()


def trl_model(setting: Setting, outputs: tuple[str, ...]) -> nn.Module:
    """transformers' model with TRL's fused head, which takes log-probabilities tile by tile."""
    with warnings.catch_warnings(action="ignore"):  # of a vLLM that it has not seen yet
        from trl.trainer.utils import add_fused_lm_head

    model = their_model(*setting.key)
    if "forward" not in vars(model):
        add_fused_lm_head(model, outputs=outputs)
    return model


def openrlhf_actor(setting: Setting) -> nn.Module:
    """OpenRLHF's Actor around transformers' model."""
    stand_in_flash_attn()
    from openrlhf.models.actor import Actor

    actor = Actor(their_model(*setting.key))
    actor.packing_samples = False  # these three it sets only for a model that it loads itself
    actor.is_vlm, actor._vlm_config = True, actor.model.config
    return actor
