"""Attention of runs of queries over runs of keys, forward and backward, on whatever is at hand.

Three siblings, chosen by where the tensors lie (`kernels_for`):

- CPU: torch's own flash attention, on batches of runs of (nearly) one length;
- VARLEN: flash attention of a GPU in half precision, runs of any lengths in one call, unpadded;
- PLAIN: the same arithmetic in plain operations, block by block, for all else (float32 on a GPU).

All tell the log-sum-exp of the scores beside the output, and all go backward from an output and a
log-sum-exp that may be those over *more* keys than the call's own. That is what lets the parts of
one softmax be computed apart and merged exactly (`attention`).

FlexAttention was the other choice for a GPU. It needs one call where varlen needs two, but compiles
kernels first, and a block mask must be built for every batch; flash attention is there at once and
skips whole runs rather than blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from veripo_ray.policy.runs import Runs

BLOCK = 512  # queries whose scores the plain kernel holds at a time
aten = torch.ops.aten

Two = tuple[Tensor, Tensor]
Three = tuple[Tensor, Tensor, Tensor]  # query, key, value; or their gradients


class Kernels(NamedTuple):
    """forward(qkv, runs, scale) -> output [S, H, D], log-sum-exp [H, S], float32 or finer.
    backward(grad_SHD, qkv, output_SHD, lse_HS, runs, scale) -> gradients of query, key and value.

    qkv: query [S, H, D], key and value [K, G, D], G a divisor of H. In backward, output and
    log-sum-exp of a query may be those over more keys than its run's.
    """

    forward: Callable[[Three, Runs, float], Two]
    backward: Callable[[Tensor, Three, Tensor, Tensor, Runs, float], Three]


def kernels_for(query_THD: Tensor) -> Kernels:
    """The fastest kernels for tensors of this device, dtype and head size."""
    if query_THD.device.type == "cpu":
        return CPU
    if query_THD.device.type == "cuda" and _flash_takes(query_THD):
        return VARLEN
    return PLAIN


def _flash_takes(query_THD: Tensor) -> bool:
    half = query_THD.dtype in (torch.float16, torch.bfloat16)
    fits = query_THD.shape[-1] % 8 == 0 and query_THD.shape[-1] <= 256
    return half and fits and torch.cuda.get_device_capability(query_THD.device) >= (8, 0)


def _varlen_forward(qkv: Three, runs: Runs, scale: float) -> Two:
    limits = (*runs.ends, max(runs.queries), max(runs.keys))
    out_SHD, lse_HS, *_ = aten._flash_attention_forward(
        *qkv, *limits, 0.0, runs.causal, False, scale=scale
    )
    return out_SHD, lse_HS


def _varlen_backward(
    grad_SHD: Tensor, qkv: Three, out_SHD: Tensor, lse_HS: Tensor, runs: Runs, scale: float
) -> Three:
    limits = (*runs.ends, max(runs.queries), max(runs.keys))
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=grad_SHD.device)
    return aten._flash_attention_backward(
        grad_SHD.contiguous(), *qkv, out_SHD, lse_HS.contiguous(), *limits,
        0.0, runs.causal, no_dropout, no_dropout.new_empty(0), scale=scale,
    )  # fmt: skip


VARLEN = Kernels(_varlen_forward, _varlen_backward)


def _batched(
    forward: Callable[[Three, bool, float], Two],
    backward: Callable[[Tensor, Three, Tensor, Tensor, bool, float], Three],
) -> Kernels:
    """Kernels of a pair that works on batches: query [B, H, S, D], log-sum-exp [B, H, S]."""

    def forward_runs(qkv: Three, runs: Runs, scale: float) -> Two:
        query, key, value = qkv
        out_SHD = _contiguous_like(query)
        lse_SH1 = out_SHD.new_empty((*query.shape[:2], 1), dtype=_exact(query))
        for asking, asked in runs.batches:
            batch = (asking.take(query), asked.take(key), asked.take(value))
            out_BHSD, lse_BHS = forward(batch, runs.causal, scale)
            asking.put(out_SHD, out_BHSD)
            asking.put(lse_SH1, lse_BHS[..., None])
        return out_SHD, lse_SH1[..., 0].t()

    def backward_runs(
        grad_SHD: Tensor, qkv: Three, out_SHD: Tensor, lse_HS: Tensor, runs: Runs, scale: float
    ) -> Three:
        query, key, value = qkv
        grads = (_contiguous_like(query), _contiguous_like(key), _contiguous_like(value))
        lse_SH1 = lse_HS.t()[..., None]
        for asking, asked in runs.batches:
            lse_BHS = asking.take(lse_SH1)[..., 0]
            if asking.padding_BL is not None:  # exp(score - inf) = 0: padding gives no gradient
                lse_BHS = lse_BHS.masked_fill(asking.padding_BL[:, None], torch.inf)
            batch = (asking.take(query), asked.take(key), asked.take(value))
            parts = backward(
                asking.take(grad_SHD), batch, asking.take(out_SHD), lse_BHS, runs.causal, scale
            )
            for rows, whole, part in zip((asking, asked, asked), grads, parts, strict=True):
                rows.put(whole, part)
        return grads

    return Kernels(forward_runs, backward_runs)


def _contiguous_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _exact(tensor: Tensor) -> torch.dtype:
    """What scores are summed in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _cpu_forward(qkv: Three, causal: bool, scale: float) -> Two:
    return aten._scaled_dot_product_flash_attention_for_cpu(*qkv, 0.0, causal, scale=scale)


def _cpu_backward(
    grad: Tensor, qkv: Three, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Three:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, *qkv, out, lse, 0.0, causal, scale=scale
    )


CPU = _batched(_cpu_forward, _cpu_backward)


def _plain_forward(qkv: Three, causal: bool, scale: float) -> Two:
    query, key, value = _equal_heads(qkv)
    outs, lses = [], []
    for queries, keys in _blocks(query, causal):
        scores = _scores(query, key, queries, keys, causal, scale)
        lses.append(scores.logsumexp(-1))
        outs.append((scores - lses[-1][..., None]).exp().to(value.dtype) @ value[:, :, keys])
    return torch.cat(outs, 2), torch.cat(lses, 2)


def _plain_backward(
    grad: Tensor, qkv: Three, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Three:
    """Of a softmax whose normaliser is known (FlashAttention, arXiv 2205.14135, appendix B.4)."""
    query, key, value = _equal_heads(qkv)
    grad_query = torch.empty_like(query)
    grad_key, grad_value = (torch.zeros_like(x, dtype=lse.dtype) for x in (key, value))
    mean_BHS1 = (grad.to(lse.dtype) * out).sum(-1, keepdim=True)
    for queries, keys in _blocks(query, causal):
        scores = _scores(query, key, queries, keys, causal, scale)
        shares = (scores - lse[:, :, queries, None]).exp()
        gains = (grad[:, :, queries] @ value[:, :, keys].mT).to(lse.dtype)
        slopes = (shares * (gains - mean_BHS1[:, :, queries]) * scale).to(query.dtype)
        grad_query[:, :, queries] = slopes @ key[:, :, keys]
        grad_key[:, :, keys] += slopes.mT @ query[:, :, queries]
        grad_value[:, :, keys] += shares.to(grad.dtype).mT @ grad[:, :, queries]
    heads = qkv[1].shape[1]
    shared = (x.unflatten(1, (heads, -1)).sum(2).to(query.dtype) for x in (grad_key, grad_value))
    return grad_query, *shared


def _equal_heads(qkv: Three) -> Three:
    query, key, value = qkv
    times = query.shape[1] // key.shape[1]
    return query, key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)


def _blocks(query_BHSD: Tensor, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries and the keys that any of them sees."""
    for start in range(0, query_BHSD.shape[2], BLOCK):
        yield slice(start, start + BLOCK), slice(start + BLOCK if causal else None)


def _scores(
    query: Tensor, key: Tensor, queries: slice, keys: slice, causal: bool, scale: float
) -> Tensor:
    """Scaled scores of a block, -inf where a key is later than the query."""
    scores = (query[:, :, queries] @ key[:, :, keys].mT).to(_exact(query)) * scale
    if not causal:
        return scores
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
    return scores.masked_fill_(later.triu(1 + queries.start), -torch.inf)


PLAIN = _batched(_plain_forward, _plain_backward)
