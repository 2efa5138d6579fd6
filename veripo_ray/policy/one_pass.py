"""Attention of packed groups on a CPU in float32, rounded as the rollout engine rounds it.

Of all that a model computes, attention alone comes out differently here and in vLLM on a CPU;
norms, projections and rotations agree to the last bit. Where a policy is undecided it multiplies a
difference of the last bit by a hundred and more, so here the same sums are made in the same order
(vLLM 0.32, `csrc/cpu/cpu_attn_impl.hpp` and `cpu_attn_vec.hpp`):

- queries are scaled, and not scores;
- a token's keys, of its prompt and of its own past, go through one softmax: the parts that
  `attention` merges are each rounded, and so is the log-sum-exp that merges them;
- queries and keys are padded to whole blocks: for what is left over torch's kernel has another exp
  and other matrix products.

With AVX-512 both sides are then equal to the last bit; with AVX2 vLLM has another exp. It costs a
copy of the prompt's keys for every response, so long sequences are not for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from veripo_ray.policy.kernels import Three, Two, aten
from veripo_ray.policy.runs import STEP, Rows, rows_of

MOST_KEYS = 256  # of one query; two parts take about as long up to here, at 500 much less
VECTOR = 16  # floats, of AVX-512


class Run(NamedTuple):
    """A prompt, or a response behind it. start, length: its tokens' places in the flat row;
    prompt, seen: where its prompt starts, and how long that is (0 for a prompt itself)."""

    start: int
    length: int
    prompt: int
    seen: int


@dataclass(frozen=True)
class Whole:
    """All prompts and responses of a flat row, each over all keys that it sees at once."""

    runs: Sequence[Run]

    @classmethod
    def of(cls, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> Whole:
        """As `attention.Layout.of`."""
        runs, at = [], 0
        for prompt, own in zip(prompts, responses, strict=True):
            runs.append(Run(at, prompt, at, 0))
            starts = accumulate(own, initial=at + prompt)
            behind = zip(starts, own, strict=False)  # there is one start more, where the last ends
            runs += [Run(start, length, at, prompt) for start, length in behind if length]
            at += prompt + sum(own)
        return cls(runs)

    @property
    def most_keys(self) -> int:
        return max((run.seen + run.length for run in self.runs), default=0)

    @cached_property
    def batches(self) -> list[tuple[Rows, Tensor, Tensor]]:
        """Queries; int64 places [B, K] of their keys; [B, 1, Q, K], 0 where a query sees a key and
        -inf where not."""
        alike: dict[tuple[int, int], list[Run]] = {}
        for run in self.runs:
            sizes = (-(-run.length // STEP), -(-(run.seen + run.length) // VECTOR))
            alike.setdefault(sizes, []).append(run)
        return [
            _batch(runs, steps * STEP, vectors * VECTOR) for (steps, vectors), runs in alike.items()
        ]


def _batch(runs: Sequence[Run], queries: int, keys: int) -> tuple[Rows, Tensor, Tensor]:
    start_B1, length_B1, prompt_B1, seen_B1 = torch.tensor(runs).t()[..., None].unbind()
    key_K = torch.arange(keys)
    places_BK = torch.where(key_K < seen_B1, prompt_B1 + key_K, start_B1 + key_K - seen_B1)
    places_BK = places_BK.where(key_K < seen_B1 + length_B1, 0)
    last_BQ1 = (seen_B1 + torch.arange(queries))[..., None]
    mask_BQK = torch.where(key_K <= last_BQ1, 0.0, -torch.inf)
    starts, lengths = [run.start for run in runs], [run.length for run in runs]
    return rows_of(starts, lengths, "cpu", width=queries), places_BK, mask_BQK[:, None]


def suits(query_THD: Tensor, whole: Whole) -> bool:
    """Whether tensors of this device and dtype are to go through `forward`."""
    there = query_THD.device.type == "cpu" and query_THD.dtype == torch.float32
    return there and whole.most_keys <= MOST_KEYS


def forward(qkv: Three, whole: Whole, scale: float) -> Two:
    """Output [T, H, D] and log-sum-exp [H, T]."""
    query, key, value = qkv
    out_THD = query.new_empty(query.shape)
    lse_TH1 = query.new_empty((*query.shape[:2], 1))
    for asking, places_BK, mask_B1QK in whole.batches:
        keys, values = (x[places_BK].transpose(1, 2) for x in (key, value))
        out_BHQD, lse_BHQ = aten._scaled_dot_product_flash_attention_for_cpu(
            asking.take(query) * scale, keys, values, 0.0, False, attn_mask=mask_B1QK, scale=1.0
        )
        asking.put(out_THD, out_BHQD)
        asking.put(lse_TH1, lse_BHQ[..., None])
    return out_THD, lse_TH1[..., 0].t()
