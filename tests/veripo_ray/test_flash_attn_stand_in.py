"""The stand-in for flash-attn's padding functions: the same results, gradients included."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veripo_ray import compat, flash_attn_stand_in
from veripo_ray.flash_attn_stand_in import all_gather, index_first_axis, pad_input, unpad_input

masks = st.integers(1, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=4
    )
)


@settings(max_examples=50, deadline=None)
@given(masks)
def test_padding_brings_back_what_unpadding_kept_and_zeros_elsewhere(rows):
    mask_BS = torch.tensor(rows)
    x_BSH = torch.randn(*mask_BS.shape, 3)
    x_NH, indices_N, cumulative, longest, used_B = unpad_input(x_BSH, mask_BS)
    lengths = mask_BS.sum(1)
    assert x_NH.shape == (int(lengths.sum()), 3)
    assert cumulative.dtype == torch.int32
    assert cumulative.tolist() == [0, *lengths.cumsum(0).tolist()]
    assert longest == int(lengths.max())
    assert used_B.tolist() == lengths.tolist()
    padded = pad_input(x_NH, indices_N, *mask_BS.shape)
    assert torch.equal(padded, x_BSH * mask_BS.unsqueeze(-1))


def test_places_kept_but_unused_are_rows_that_do_not_count():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    unused = torch.tensor([[0, 0, 1], [0, 0, 0]])
    x_N, _, cumulative, longest, used_B = unpad_input(torch.arange(6.0).view(2, 3), mask, unused)
    assert x_N.tolist() == [0, 1, 2, 3]
    assert cumulative.tolist() == [0, 3, 4]
    assert (longest, used_B.tolist()) == (3, [2, 1])


def test_gradients_flow_back_to_the_kept_places_alone():
    x_BS = torch.zeros(2, 3, requires_grad=True)
    x_N, indices_N, *_ = unpad_input(x_BS, torch.tensor([[1, 0, 1], [0, 1, 0]]))
    (pad_input(index_first_axis(x_N, torch.tensor([0, 0, 2])), indices_N, 2, 3)).sum().backward()
    assert x_BS.grad is not None
    assert x_BS.grad.tolist() == [[2, 0, 0], [0, 1, 0]]


@pytest.fixture
def lone_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def test_gathering_joins_ranks_and_is_differentiable(lone_group):
    x_N = torch.arange(3.0, requires_grad=True)
    gathered = all_gather(x_N, lone_group)
    gathered.mul(2).sum().backward()
    assert gathered.tolist() == [0, 1, 2]
    assert x_N.grad is not None
    assert x_N.grad.tolist() == [2, 2, 2]


def test_the_stand_in_is_put_in_place_only_by_an_explicit_call(monkeypatch):
    names = ("flash_attn.bert_padding", "flash_attn.utils.distributed")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    compat.stand_in_flash_attn()
    assert all(sys.modules[name] is flash_attn_stand_in for name in names)
    for name in names:
        monkeypatch.delitem(sys.modules, name)
