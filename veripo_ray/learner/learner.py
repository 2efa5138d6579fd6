"""One rank of the learner: a policy, its optimiser, and the steps of GRPO and DPO.

All ranks get all examples of an optimiser step and the same calls in the same order; each trains
every world_size-th example, and losses are sums over denominators of the whole step. So a step
does not depend on the number of ranks, nor on how examples are cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from veripo_ray import config
from veripo_ray.errors import PrecisionError
from veripo_ray.learner import checkpoint as files
from veripo_ray.learner import rendezvous
from veripo_ray.learner.engine import Engine
from veripo_ray.learner.examples import Example, TrainGroup, TrainPair, rounds
from veripo_ray.learner.objectives import DpoObjective, GrpoObjective, Stats
from veripo_ray.policy import lora as low_rank
from veripo_ray.policy.grouped import Packed, micro_batches, response_logprobs
from veripo_ray.policy.media import Media
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.precision import gap_error
from veripo_ray.weights import Manifest, Snapshot, buckets, to_array

T = TypeVar("T")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Objective = Callable[[Sequence[int], list[list[Tensor]]], tuple[Tensor, Stats]]


class Learner:
    """Trains the language model of `checkpoint`, and its vision tower where cfg.train_vision says
    so: examples come with frames then. A frozen tower has sent features, and is not loaded. With
    cfg.lora adapters train, on a language model that rests.

    temperature: of sampling, so that log-probabilities are those of the same distribution.
    max_tokens: of sampling, wanted only by Dr.GRPO's constant. store: where the ranks meet, see
    `rendezvous`; a single rank needs none. version: the weights' version, set by `publish`.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        cfg: config.Learner,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        store: dist.Store | None = None,
        temperature: float = 1.0,
        max_tokens: int | None = None,
        join_timeout_s: float = 120.0,
    ) -> None:
        self.cfg = cfg
        self.rank = rank
        self.world_size = world_size
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.version = 0
        self._stopped: PrecisionError | None = None
        device = torch.device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        rendezvous.join(store or rendezvous.alone(), rank, world_size, backend, join_timeout_s)
        torch.manual_seed(seed)
        self.policy = QwenVL.load(
            checkpoint, dtype=DTYPES[cfg.dtype], device=device, tower=cfg.train_vision
        )
        if cfg.lora:
            self.policy.add_adapters(cfg.lora)
        if cfg.gradient_checkpointing:
            self.policy.enable_gradient_checkpointing()
        head = self.policy.model.get_output_embeddings()
        self.engine = Engine(
            self.policy.model, self.policy.trainable(), cfg, device, reused=[head.weight]
        )
        self._reference = self.engine.values() if cfg.lora else None

    def publish(self, version: int) -> None:
        """Name the present weights; rollouts sampled from them will carry this version."""
        self.version = version

    def grpo_step(
        self,
        groups: Sequence[TrainGroup],
        features: Mapping[str, tuple[Media, ...]],
        cfg: config.Grpo,
        *,
        max_gap: float | None = None,
    ) -> Stats:
        """One optimiser step on `groups`; `features`, by group id, need hold only this rank's.

        Returns the step's metrics, equal on all ranks. With max_gap (on-policy data), raises
        PrecisionError before the weights change when some token's log-probability differs from the
        rollout worker's by more; the learner then refuses further steps.
        """
        objective = GrpoObjective(groups, cfg, self.max_tokens)
        stats = self._accumulate(groups, features, objective)
        gaps = {name: gap for part in self._from_all(objective.gaps) for name, gap in part.items()}
        worst = max(gaps, key=lambda name: _nan_last(gaps[name]))
        if max_gap is not None and not gaps[worst] <= max_gap:
            self._stop(gap_error(worst, gaps[worst], max_gap))
        return self._update(stats, cfg.lr) | {
            "logprob_gap": gaps[groups[0].id],
            "logprob_gap_max": gaps[worst],
            "tokens": objective.totals.tokens,
        }

    def dpo_step(
        self, pairs: Sequence[TrainPair], features: Mapping[str, tuple[Media, ...]], cfg: config.Dpo
    ) -> Stats:
        """One optimiser step on `pairs`; `features`, by pair id, need hold only this rank's.

        Returns the step's metrics, equal on all ranks.
        """
        stats = self._accumulate(pairs, features, DpoObjective(pairs, cfg))
        tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
        return self._update(stats, cfg.lr) | {"tokens": tokens}

    def _accumulate(
        self,
        examples: Sequence[Example],
        features: Mapping[str, tuple[Media, ...]],
        objective: Objective,
    ) -> Stats:
        """Gradients of the whole step. Returns the statistics, summed over all ranks; media_seen:
        clips and images that went through a tower that learns."""
        if self._stopped:
            raise self._stopped
        if not any(map(len, (row for example in examples for row in example.packed().responses))):
            raise ValueError("a step needs at least one response with a token")
        own: Stats = {}
        seen = self.policy.seen
        for indices in rounds(examples, self.rank, self.world_size, self.cfg.micro_batch_tokens):
            packed = [examples[i].packed(features[examples[i].id]) for i in indices]
            part: Stats = {}
            self.engine.accumulate(lambda: self._loss(indices, packed, objective, part))  # noqa: B023
            _add(own, part)
        if self.cfg.train_vision:
            own["media_seen"] = self.policy.seen - seen
        total: Stats = {}
        for part in self._from_all(own):
            _add(total, part)
        return total

    def _loss(
        self, indices: list[int], packed: list[Packed], objective: Objective, stats: Stats
    ) -> Tensor:
        if not packed:
            return self._nothing()
        scores = response_logprobs(self.policy, packed, temperature=self.temperature)
        loss, part = objective(indices, scores)
        stats.update(part)
        return loss

    def _nothing(self) -> Tensor:
        """A zero loss through every weight, for a rank that has fewer micro-batches than others."""
        [[logprobs]] = response_logprobs(self.policy, [self._idle()])
        return logprobs.sum() * 0.0

    def _idle(self) -> Packed:
        """The shortest forward there is: a rank without work takes part in the collectives."""
        stop = np.array(self.policy.spec.stop_ids[:1], np.int32)
        return Packed(stop, (), (stop,))

    def _update(self, stats: Stats, lr: float) -> Stats:
        if not np.isfinite(stats["loss"]):
            self._stop(
                PrecisionError(
                    f"the loss is {stats['loss']}",
                    fix="lower the learning rate, or train in float32",
                )
            )
        return stats | {"lr": lr, "grad_norm": self.engine.step(lr)}

    def _stop(self, error: PrecisionError) -> None:
        """Raise on every rank; gradients of the abandoned step must never reach the weights."""
        self._stopped = error
        raise error

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` holds on some rank; all get the same answer. Collective."""
        return any(self._from_all(flag))

    def _from_all(self, value: Any) -> list[Any]:
        """`value` of every rank, in the order of ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def score(
        self, groups: Sequence[Example], features: Mapping[str, tuple[Media, ...]]
    ) -> dict[str, list[np.ndarray]]:
        """Log-probabilities [R_i] float32 of this rank's share of the groups (or pairs), by id,
        without gradients. Those without a single response token are left out. Collective;
        `features` need hold only this rank's.
        """
        scores: dict[str, list[np.ndarray]] = {}
        for indices in rounds(groups, self.rank, self.world_size, self.cfg.micro_batch_tokens):
            mine = [groups[index] for index in indices]
            rows = [group.packed(features[group.id]) for group in mine]
            found = self.logprobs(rows or [self._idle()])
            scores |= {group.id: part for group, part in zip(mine, found, strict=False)}
        return scores

    # --- with LoRA the learner is the reference too: adapters are small, so it keeps two sets

    def keep_reference(self) -> None:
        """The present policy is the reference from now on; before, it was the checkpoint's.
        Collective under ZeRO-3."""
        self._reference = self.engine.values()

    def load_reference(self, folder: str | Path) -> None:
        """The policy that `save` wrote to `folder` is the reference. Collective under ZeRO-3."""
        stored = self.policy.stored_adapters(Path(folder) / low_rank.FOLDER)
        device = self.policy.device
        self._reference = {name: weight.to(device) for name, weight in stored.items()}

    def score_by_reference(
        self, groups: Sequence[Example], features: Mapping[str, tuple[Media, ...]]
    ) -> dict[str, list[np.ndarray]]:
        """As `score`, under the reference."""
        assert self._reference is not None, "without LoRA the reference is another policy"
        with self.engine.holding(self._reference):
            return self.score(groups, features)

    def logprobs(self, packed: Sequence[Packed]) -> list[list[np.ndarray]]:
        """Log-probabilities [R_i] float32 of every response, without gradients.

        Scores what it is given; under ZeRO-3 all ranks must call it with the same rows.
        """
        scores: list[list[np.ndarray]] = []
        for indices in micro_batches(packed, self.cfg.micro_batch_tokens):
            rows = [packed[index] for index in indices]
            part = self.engine.evaluate(
                lambda: response_logprobs(self.policy, rows, temperature=self.temperature)  # noqa: B023
            )
            scores += [[row.cpu().numpy() for row in group] for group in part]
        return scores

    def manifest(self) -> Manifest:
        """What `each_weight` will yield. Every rank can tell; nothing is gathered for it."""
        parts = {name: weight.parts[0] for name, weight in self.policy.published().items()}
        shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in parts.items()}
        return Manifest(self.version, self.cfg.dtype, shapes)

    def each_weight(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight that a step changes, under its checkpoint name, whole, on this device;
        adapters are merged in. Good only until the next is asked for, and not to be written to.

        Collective under ZeRO-3, where a few layers at a time are gathered.
        """
        for name, weight in self.engine.each_whole(self.policy.published()):
            yield name, weight.value()

    def buckets(self, size: int) -> Iterator[Snapshot]:
        """The same on rank 0, in buckets of `size` bytes in host memory, to be sent before the next
        is asked for; nothing on the others. Collective like `each_weight`."""
        passing = self.engine.stage == 3  # a gathered weight goes when its neighbours come
        arrays = (
            (name, to_array(w, copy=passing)) for name, w in self._on_first(self.each_weight())
        )
        yield from buckets(arrays, size)

    def weights(self) -> Snapshot:
        """A copy of all of them on rank 0, {} on the others. Collective like `each_weight`."""
        return {name: to_array(weight) for name, weight in self._on_first(self.each_weight())}

    def adapters(self) -> Snapshot:
        """A copy of the adapters' own weights, by transformers' names; otherwise as `weights`."""
        each = self.engine.each_whole(self.policy.adapters())
        return {name: to_array(weight.value()) for name, weight in self._on_first(each)}

    def _on_first(self, each: Iterator[T]) -> Iterator[T]:
        """What is gathered by all ranks, as far as this one keeps it."""
        return (item for item in each if self.rank == 0)

    def save(self, folder: str | Path) -> None:
        """Write `folder`/hf (which transformers and vLLM load), with LoRA `folder`/adapter (which
        peft loads), and `folder`/state. Collective.

        The folder appears whole or not at all; all ranks must see the same file system.
        """
        files.save(self, Path(folder))

    def load(self, folder: str | Path) -> None:
        """Continue exactly where `save` left off. Collective.

        Raises CheckpointError when the checkpoint is incomplete or was written by another number
        of ranks, ZeRO stage, dtype or LoRA setting.
        """
        files.load(self, Path(folder))


def _add(total: Stats, part: Stats) -> None:
    for name, value in part.items():
        total[name] = total.get(name, 0.0) + value


def _nan_last(value: float) -> float:
    return float("inf") if np.isnan(value) else value
