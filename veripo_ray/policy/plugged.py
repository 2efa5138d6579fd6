"""Our attention as transformers calls it, under names in its register."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from veripo_ray.policy.attention import Layout, grouped_attention

GROUPED = "veripo_grouped"  # of the language model
CHUNKED = "veripo_flash_chunks"  # of the tower; at "flash" transformers gives all chunks at once


def register_attention() -> None:
    """Make both known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(GROUPED, _grouped)
    AttentionInterface.register(CHUNKED, _chunked)


def _grouped(
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


def _chunked(
    module: nn.Module,  # noqa: ARG001
    query_1HTD: Tensor,
    key_1HTD: Tensor,
    value_1HTD: Tensor,
    attention_mask: None,  # noqa: ARG001
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of every chunk (a frame, or a window of one) over itself; chunks of one length go
    together, where transformers' own takes one at a time."""
    lengths_C = cu_seq_lens_q.diff()
    outputs, places = [], []
    for length in lengths_C.unique().tolist():
        starts_B = cu_seq_lens_q[:-1][lengths_C == length]
        places_BN = starts_B[:, None] + torch.arange(length, device=starts_B.device)
        query, key, value = (
            tensor[0][:, places_BN].transpose(0, 1) for tensor in (query_1HTD, key_1HTD, value_1HTD)
        )
        output_BHND = scaled_dot_product_attention(query, key, value, scale=scaling)
        outputs.append(output_BHND.transpose(1, 2).flatten(0, 1))
        places.append(places_BN.flatten())
    order_T = torch.cat(places).argsort()
    return torch.cat(outputs)[order_T][None], None
