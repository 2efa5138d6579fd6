"""Attention of packed groups in two parts, so that nothing is computed only to be masked.

The tokens of several groups lie in one flat row, `[prompt | r1 | r2 | prompt | r1 | ...]`, without
padding: every token-wise operation of the model runs on it as it is. Attention alone needs to know
who sees whom. Part one: each prompt, causally, over itself. Part two: each response over its
prompt's keys and, causally, its own. A dense mask over the row would cost its length squared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, slots=True)
class Layout:
    """Where M prompts and N non-empty responses lie in a flat row of T tokens.

    prompt_MP, response_NR: int64 places of their tokens in the row, padded behind with 0.
    prompt_of_N: int64, which prompt a response belongs to.
    visible_N1RK: bool, which of its K = P + R keys (its prompt's, then its own) a query sees.
    source_T: int64, where each token is found in all padded prompts followed by all responses.
    """

    prompt_MP: Tensor
    response_NR: Tensor
    prompt_of_N: Tensor
    visible_N1RK: Tensor
    source_T: Tensor

    @classmethod
    def of(
        cls,
        prompts: Sequence[int],
        responses: Sequence[Sequence[int]],
        device: torch.device | str = "cpu",
    ) -> Layout:
        """prompts: lengths, each at least 1; responses: for each prompt the lengths of its own."""
        prompt_starts, starts, lengths, owners = [], [], [], []
        place = 0
        for owner, (prompt, own) in enumerate(zip(prompts, responses, strict=True)):
            prompt_starts.append(place)
            place += prompt
            for length in own:
                if length:
                    starts.append(place)
                    lengths.append(length)
                    owners.append(owner)
                place += length
        prompt_MP, real_MP = _places(prompt_starts, prompts)
        response_NR, real_NR = _places(starts, lengths)
        owners_N = np.array(owners, dtype=np.int64)
        causal_RR = np.tri(response_NR.shape[1], dtype=bool)
        visible_NRK = np.concatenate(
            [
                np.broadcast_to(real_MP[owners_N][:, None], (*response_NR.shape, real_MP.shape[1])),
                np.broadcast_to(causal_RR, (len(owners), *causal_RR.shape)),
            ],
            axis=2,
        )
        places = np.concatenate([prompt_MP[real_MP], response_NR[real_NR]])
        real = np.concatenate([real_MP.ravel(), real_NR.ravel()])
        source_T = np.flatnonzero(real)[np.argsort(places)]
        arrays = (prompt_MP, response_NR, owners_N, visible_NRK[:, None], source_T)
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))


def _places(starts: Sequence[int], lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Runs start, start + 1, ... as rows padded to the longest with 0, and which are real."""
    steps = np.arange(max(lengths, default=0), dtype=np.int64)
    real = steps < np.array(lengths, dtype=np.int64)[:, None]
    return np.where(real, np.array(starts, dtype=np.int64)[:, None] + steps, 0), real


def grouped_attention(
    query_HTD: Tensor, key_HTD: Tensor, value_HTD: Tensor, layout: Layout, scale: float
) -> Tensor:
    """Attention output [T, H, D] of the flat row; keys and values may have fewer heads than H."""
    heads_differ = query_HTD.shape[0] != key_HTD.shape[0]
    query_MHPD, key_MHPD, value_MHPD = (
        _rows(tensor, layout.prompt_MP) for tensor in (query_HTD, key_HTD, value_HTD)
    )
    prompts_MHPD = scaled_dot_product_attention(
        query_MHPD, key_MHPD, value_MHPD, is_causal=True, scale=scale, enable_gqa=heads_differ
    )
    outputs = [prompts_MHPD.transpose(1, 2).flatten(0, 1)]
    if layout.response_NR.numel():
        query_NHRD, key_NHRD, value_NHRD = (
            _rows(tensor, layout.response_NR) for tensor in (query_HTD, key_HTD, value_HTD)
        )
        responses_NHRD = scaled_dot_product_attention(
            query_NHRD,
            torch.cat([key_MHPD.index_select(0, layout.prompt_of_N), key_NHRD], dim=2),
            torch.cat([value_MHPD.index_select(0, layout.prompt_of_N), value_NHRD], dim=2),
            attn_mask=layout.visible_N1RK,
            scale=scale,
            enable_gqa=heads_differ,
        )
        outputs.append(responses_NHRD.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, layout.source_T)


def _rows(tensor_HTD: Tensor, places_NR: Tensor) -> Tensor:
    """[heads, T, D] -> [N, heads, R, D]."""
    flat = tensor_HTD.index_select(1, places_NR.flatten())
    return flat.unflatten(1, places_NR.shape).transpose(0, 1)
