"""What openrlhf imports from flash-attn's `bert_padding` and `utils.distributed`, in plain torch.

Signatures and results follow flash-attn 2. Put in place by `compat.stand_in_flash_attn` alone.
"""

from __future__ import annotations

import torch
import torch.distributed.nn.functional as distributed
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

__all__ = ["all_gather", "index_first_axis", "pad_input", "rearrange", "unpad_input"]


def index_first_axis(x_N: Tensor, indices_M: Tensor) -> Tensor:
    """The rows `indices_M` (int64) of `x_N` [N, ...]: [M, ...]."""
    return x_N[indices_M]


def unpad_input(
    x_BS: Tensor, mask_BS: Tensor, unused_mask_BS: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """Drop padding from `x_BS` [B, S, ...].

    Returns the kept rows [N, ...], their places in the flattened batch [N] int64, the cumulative
    lengths [B + 1] int32, the longest length, and each row's used length [B] int32. Places of
    `unused_mask_BS` are kept in the rows but do not count as used.
    """
    kept_BS = mask_BS if unused_mask_BS is None else mask_BS + unused_mask_BS
    lengths_B = kept_BS.sum(dim=-1, dtype=torch.int32)
    used_B = mask_BS.sum(dim=-1, dtype=torch.int32)
    indices_N = torch.nonzero(kept_BS.flatten()).flatten()
    cumulative = F.pad(lengths_B.cumsum(0, dtype=torch.int32), (1, 0))
    return x_BS.flatten(0, 1)[indices_N], indices_N, cumulative, int(lengths_B.max()), used_B


def pad_input(x_N: Tensor, indices_N: Tensor, batch: int, seqlen: int) -> Tensor:
    """The inverse of `unpad_input`: [batch, seqlen, ...] with zeros where nothing was kept."""
    padded = x_N.new_zeros((batch * seqlen, *x_N.shape[1:]))
    return padded.index_copy(0, indices_N, x_N).unflatten(0, (batch, seqlen))


def all_gather(x_N: Tensor, group: torch.distributed.ProcessGroup | None) -> Tensor:
    """The tensors of every rank in `group`, one after the other along dimension 0."""
    return torch.cat(distributed.all_gather(x_N, group=group))
