"""Attention of packed groups in two parts, so that nothing is computed only to be masked.

The tokens of several groups lie in one flat row, `[prompt | r1 | r2 | prompt | r1 | ...]`, without
padding: every token-wise operation of the model runs on it as it is. Attention alone needs to know
who sees whom. Part one: every prompt and every response over itself, causally. Part two: all
responses of a group, as one run of queries, over their prompt's keys, of which nobody makes copies.
A response's two parts are merged by their log-sum-exp, which is exact; backward, each part starts
from the merged output and log-sum-exp and the gradients add up (as in ring attention, arXiv
2310.01889). Short sequences in float32 on a CPU go forward in one pass instead, see `one_pass`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from veripo_ray.policy import one_pass
from veripo_ray.policy.kernels import Three, Two, kernels_for
from veripo_ray.policy.runs import Runs


@dataclass(frozen=True, slots=True)
class Layout:
    """Who sees whom in a flat row of T tokens.

    own: every prompt and every response over itself. behind: the responses of each prompt that has
    any token of one, together, over that prompt; None if there is none. asking_S, asked_P: int64
    places of those responses' and those prompts' tokens. whole: all of it in one pass.
    """

    own: Runs
    behind: Runs | None
    asking_S: Tensor
    asked_P: Tensor
    whole: one_pass.Whole

    @classmethod
    def of(
        cls,
        prompts: Sequence[int],
        responses: Sequence[Sequence[int]],
        device: torch.device | str = "cpu",
    ) -> Layout:
        """prompts: lengths, each at least 1; responses: for each prompt the lengths of its own."""
        groups = [(p, sum(own)) for p, own in zip(prompts, responses, strict=True)]
        lengths = [
            length
            for p, own in zip(prompts, responses, strict=True)
            for length in (p, *own)
            if length
        ]
        answered = [(prompt, own) for prompt, own in groups if own]
        behind = None
        if answered:
            queries, keys = [own for _, own in answered], [prompt for prompt, _ in answered]
            behind = Runs(queries, keys, causal=False, device=device)
        kinds_T = np.repeat(
            [kind for _, own in groups for kind in (1 if own else 0, 2)],
            [length for group in groups for length in group],
        )
        asking_S, asked_P = (
            torch.from_numpy(np.flatnonzero(kinds_T == kind)).to(device) for kind in (2, 1)
        )
        own = Runs(lengths, lengths, causal=True, device=device)
        whole = one_pass.Whole.of(prompts, responses)
        return cls(own, behind, asking_S, asked_P, whole)


def grouped_attention(
    query_HTD: Tensor, key_HTD: Tensor, value_HTD: Tensor, layout: Layout, scale: float
) -> Tensor:
    """Attention output [T, H, D] of the flat row; keys and values may have fewer heads than H.

    Differentiable once.
    """
    qkv = (tensor.transpose(0, 1) for tensor in (query_HTD, key_HTD, value_HTD))
    return _Grouped.apply(*qkv, layout, scale)


class _Grouped(torch.autograd.Function):
    """Keeps what it was given, its output and one number a head and token; no copy of any key."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float
    ) -> Tensor:
        if one_pass.suits(query, layout.whole):
            out_THD, lse_HT = one_pass.forward((query, key, value), layout.whole, scale)
        else:
            out_THD, lse_HT = _in_two_parts((query, key, value), layout, scale)
        ctx.save_for_backward(query, key, value, out_THD, lse_HT)
        ctx.layout, ctx.scale = layout, scale
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:
        *qkv, out_THD, lse_HT = ctx.saved_tensors
        layout, kernels = ctx.layout, kernels_for(grad_THD)
        grads = kernels.backward(grad_THD, tuple(qkv), out_THD, lse_HT, layout.own, ctx.scale)
        if layout.behind is not None:
            asking = layout.asking_S
            more = kernels.backward(
                grad_THD[asking], _part(tuple(qkv), layout), out_THD[asking], lse_HT[:, asking],
                layout.behind, ctx.scale,
            )  # fmt: skip
            places = (asking, layout.asked_P, layout.asked_P)
            for whole, rows, part in zip(grads, places, more, strict=True):
                whole.index_add_(0, rows, part)
        return *grads, None, None


def _in_two_parts(qkv: Three, layout: Layout, scale: float) -> Two:
    """Output [T, H, D] and log-sum-exp [H, T]."""
    kernels = kernels_for(qkv[0])
    out_THD, lse_HT = kernels.forward(qkv, layout.own, scale)
    if layout.behind is not None:
        more_SHD, more_HS = kernels.forward(_part(qkv, layout), layout.behind, scale)
        _merge(out_THD, lse_HT, more_SHD, more_HS, layout.asking_S)
    return out_THD, lse_HT


def _part(qkv: Three, layout: Layout) -> Three:
    """Queries of the responses, keys and values of the prompts."""
    query, key, value = qkv
    return query[layout.asking_S], key[layout.asked_P], value[layout.asked_P]


def _merge(
    out_THD: Tensor, lse_HT: Tensor, more_SHD: Tensor, more_HS: Tensor, places_S: Tensor
) -> None:
    """Make out and lse, at these places, those of both parts' keys under one softmax."""
    own_HS = lse_HT[:, places_S]
    both_HS = torch.logaddexp(own_HS, more_HS)
    share_SH1, more_share_SH1 = ((x - both_HS).exp().t()[..., None] for x in (own_HS, more_HS))
    merged_SHD = out_THD[places_S] * share_SH1 + more_SHD * more_share_SH1
    out_THD[places_S] = merged_SHD.to(out_THD.dtype)
    lse_HT[:, places_S] = both_HS
