"""Runs of tokens that lie end to end in a flat tensor, and how they are read as padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

STEP = 32  # lengths that round up to one multiple share a batch; the CPU kernel's smallest block


@dataclass(frozen=True)
class Runs:
    """N runs of queries, end to end in a flat tensor, each over its run of keys in another.

    queries, keys: lengths, each at least 1. causal: a run's keys are its queries, and none sees a
    later one; otherwise a run of queries sees all of its keys.
    """

    queries: Sequence[int]
    keys: Sequence[int]
    causal: bool
    device: torch.device | str = "cpu"

    @cached_property
    def batches(self) -> list[tuple[Rows | Row, Rows | Row]]:
        """Queries and keys of runs enough alike to be one padded batch, without any further mask.

        Padding keys lie behind a causal run's own, where no query looks; other keys get none.
        """
        alike: dict[tuple[int, int], list[int]] = {}
        for run, (queries, keys) in enumerate(zip(self.queries, self.keys, strict=True)):
            steps = -(-queries // STEP)
            alike.setdefault((steps, 0 if self.causal else keys), []).append(run)
        return [
            (self._rows(self.queries, runs), self._rows(self.keys, runs)) for runs in alike.values()
        ]

    def _rows(self, lengths: Sequence[int], runs: list[int]) -> Rows | Row:
        starts_B, lengths_B = _starts(lengths)[runs], np.array(lengths)[runs]
        if len(runs) == 1:
            return Row(slice(int(starts_B[0]), int(starts_B[0] + lengths_B[0])))
        return rows_of(starts_B, lengths_B, self.device)

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """int32 [N + 1] places of queries and of keys where runs start and the last one ends."""
        queries, keys = (
            torch.from_numpy(_starts(lengths).astype(np.int32)).to(self.device)
            for lengths in (self.queries, self.keys)
        )
        return queries, keys


@dataclass(frozen=True, slots=True)
class Rows:
    """Some runs of a flat tensor as a batch [B, L], padded behind with the tensor's first row.

    places_BL: int64, where each is found. real_N: places of the real ones; source_N: where the
    flattened batch has them. padding_BL: bool, None for none.
    """

    places_BL: Tensor
    real_N: Tensor
    source_N: Tensor
    padding_BL: Tensor | None

    def take(self, flat_THD: Tensor) -> Tensor:
        """[B, H, L, D]"""
        rows = flat_THD.index_select(0, self.places_BL.flatten())
        return rows.unflatten(0, self.places_BL.shape).transpose(1, 2)

    def put(self, flat_THD: Tensor, batch_BHLD: Tensor) -> None:
        """Write what is real of a batch to its places."""
        rows = batch_BHLD.transpose(1, 2).flatten(0, 1)
        flat_THD.index_copy_(0, self.real_N, rows.index_select(0, self.source_N))


@dataclass(frozen=True, slots=True)
class Row:
    """A single run, read where it lies."""

    places: slice
    padding_BL: None = None

    def take(self, flat_THD: Tensor) -> Tensor:
        """[1, H, L, D]"""
        return flat_THD[self.places].transpose(0, 1)[None]

    def put(self, flat_THD: Tensor, batch_1HLD: Tensor) -> None:
        """Write it to its place."""
        flat_THD[self.places] = batch_1HLD[0].transpose(0, 1)


def _starts(lengths: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *lengths])


def rows_of(
    starts: Sequence[int] | np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    device: torch.device | str,
    *,
    width: int | None = None,
) -> Rows:
    """A batch of the runs that start at these places, as wide as the longest or as `width`."""
    starts_B, lengths_B = np.array(starts), np.array(lengths)
    steps = np.arange(width or lengths_B.max())
    real_BL = steps < lengths_B[:, None]
    places_BL = np.where(real_BL, starts_B[:, None] + steps, 0)
    places, real, source, padding = (
        torch.from_numpy(array).to(device)
        for array in (places_BL, places_BL[real_BL], np.flatnonzero(real_BL), ~real_BL)
    )
    return Rows(places, real, source, None if real_BL.all() else padding)
