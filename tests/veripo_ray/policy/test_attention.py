"""Grouped attention is softmax attention under the mask of the row, on every kind of kernel.

    VERIPO_TEST_CUDA=0 python -m pytest tests/veripo_ray/policy/test_attention.py

runs the tests of the GPU kernels as well, which are skipped where there is none.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from veripo_ray.policy import attention, kernels, one_pass
from veripo_ray.policy.attention import Layout, grouped_attention
from veripo_ray.policy.kernels import CPU, PLAIN, VARLEN, kernels_for
from veripo_ray.policy.runs import Runs

SCALE = 0.2
LAYOUTS = {
    "one group": ([70], [[9, 9, 9]]),
    "uneven and empty responses": ([40], [[33, 0, 1, 64, 31]]),
    "one response": ([33], [[20]]),
    "no responses": ([5], [[]]),
    "only empty responses": ([5], [[0, 0]]),
    "long beside short": ([150, 7, 7, 8], [[3, 40], [5], [], [64, 0, 2]]),
    "equal groups": ([32, 32, 32], [[8, 8], [8, 8], [8, 8]]),
    "a single token": ([1], [[1, 1]]),
}
layouts = pytest.mark.parametrize("name", LAYOUTS)
heads_and_sizes = pytest.mark.parametrize(("heads", "shared", "size"), [(2, 2, 32), (6, 2, 128)])
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def row_of(name: str) -> int:
    prompts, responses = LAYOUTS[name]
    return sum(prompts) + sum(map(sum, responses))


def inputs(name: str, heads: int, shared: int, size: int, **kind) -> tuple[Tensor, ...]:
    """query, key, value and the output's gradient, as transformers lays them out."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(row_of(name), h, size) for h in (heads, shared, shared, heads)]
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(**kind) for shape in shapes
    )


def visible(name: str) -> Tensor:
    """bool [T, T]: who sees whom, written token by token."""
    owners = []  # (group, response or -1 for the prompt)
    for group, (prompt, responses) in enumerate(zip(*LAYOUTS[name], strict=True)):
        owners += [(group, -1)] * prompt
        owners += [(group, i) for i, length in enumerate(responses) for _ in range(length)]
    mask = torch.zeros(len(owners), len(owners), dtype=torch.bool)
    for q, (group, part) in enumerate(owners):
        for k, (other_group, other_part) in enumerate(owners[: q + 1]):
            mask[q, k] = group == other_group and other_part in (part, -1)
    return mask


def dense(name: str, query: Tensor, key: Tensor, value: Tensor, grad: Tensor) -> list[Tensor]:
    """Output and gradients by one masked softmax in double precision."""
    leaves = [x.detach().double().cpu().requires_grad_() for x in (query, key, value)]
    times = query.shape[1] // key.shape[1]
    q, k, v = leaves[0], *(x.repeat_interleave(times, 1) for x in leaves[1:])
    scores = torch.einsum("qhd,khd->hqk", q, k) * SCALE
    shares = scores.masked_fill(~visible(name), -torch.inf).softmax(-1)
    out = torch.einsum("hqk,khd->qhd", shares, v)
    out.backward(grad.double().cpu())
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def grouped(name: str, query: Tensor, key: Tensor, value: Tensor, grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in (query, key, value)]
    layout = Layout.of(*LAYOUTS[name], query.device)
    out = grouped_attention(*(leaf.transpose(0, 1) for leaf in leaves), layout, SCALE)
    out.backward(grad)
    return [x.double().cpu() for x in (out.detach(), *(leaf.grad for leaf in leaves))]


def assert_close(ours: list[Tensor], exact: list[Tensor], relative: float) -> None:
    for one, other in zip(ours, exact, strict=True):
        assert (one - other).norm() <= relative * other.norm()


@layouts
@heads_and_sizes
@pytest.mark.parametrize("kind", [CPU, PLAIN], ids=["cpu", "plain"])
def test_output_and_gradients_are_those_of_one_masked_softmax(
    monkeypatch, kind, name, heads, shared, size
):
    monkeypatch.setattr(attention, "kernels_for", lambda _: kind)
    monkeypatch.setattr(kernels, "BLOCK", 48)  # several blocks of the longer runs
    tensors = inputs(name, heads, shared, size, dtype=torch.float64)
    assert_close(grouped(name, *tensors), dense(name, *tensors), 1e-12)


@layouts
@heads_and_sizes
def test_short_rows_in_float32_go_in_one_pass_with_the_same_result(
    monkeypatch, name, heads, shared, size
):
    monkeypatch.setattr(attention, "_in_two_parts", None)
    tensors = inputs(name, heads, shared, size, dtype=torch.float32)
    assert_close(grouped(name, *tensors), dense(name, *tensors), 5e-6)


def test_only_float32_on_a_cpu_and_short_sequences_go_in_one_pass():
    fits, long = (one_pass.Whole.of([244, 9], [[3, most], [7]]) for most in (12, 13))
    query_THD = torch.zeros(4, 2, 32)
    assert one_pass.suits(query_THD, fits)
    assert not one_pass.suits(query_THD, long)
    assert not one_pass.suits(query_THD.bfloat16(), fits)
    assert not one_pass.suits(query_THD.to("meta"), fits)


@layouts
def test_half_precision_is_as_near_as_its_digits_allow(name):
    tensors = inputs(name, 2, 1, 32, dtype=torch.bfloat16)
    assert_close(grouped(name, *tensors), dense(name, *tensors), 2e-2)


@layouts
def test_the_kernel_for_uneven_runs_is_told_where_each_begins(monkeypatch, name):
    """Flash attention itself needs a GPU: here a stand-in of the same signature does its work."""
    monkeypatch.setattr(kernels, "aten", SimpleNamespace(**flash_stand_in()))
    monkeypatch.setattr(attention, "kernels_for", lambda _: VARLEN)
    tensors = inputs(name, 4, 2, 32, dtype=torch.float64)
    assert_close(grouped(name, *tensors), dense(name, *tensors), 1e-12)


def flash_stand_in() -> dict:
    def runs_of(q_ends, k_ends, most_q, most_k, causal) -> Runs:
        queries, keys = q_ends.diff().tolist(), k_ends.diff().tolist()
        assert (q_ends.dtype, max(queries), max(keys)) == (torch.int32, most_q, most_k)
        return Runs(queries, keys, causal)

    def forward(q, k, v, *rest, scale):
        *limits, dropout, causal, _ = rest
        assert dropout == 0.0
        return (*PLAIN.forward((q, k, v), runs_of(*limits, causal), scale), None, None, None)

    def backward(grad, q, k, v, out, lse, *rest, scale):
        *limits, _, causal, _, _ = rest
        assert lse.is_contiguous()
        assert grad.is_contiguous()
        return PLAIN.backward(grad, (q, k, v), out, lse, runs_of(*limits, causal), scale)

    return {"_flash_attention_forward": forward, "_flash_attention_backward": backward}


def test_the_kernel_for_uneven_runs_is_called_as_this_torch_wants_it():
    """Shapes alone: torch checks the arguments against its own declaration of the kernel."""
    kind = {"dtype": torch.bfloat16, "device": "meta"}
    q, k, v = (torch.empty(30, heads, 64, **kind) for heads in (4, 2, 2))
    runs = Runs([10, 20], [10, 20], causal=True, device="cpu")
    out, lse = VARLEN.forward((q, k, v), runs, SCALE)
    assert (out.shape, lse.shape, lse.dtype) == (q.shape, (4, 30), torch.float32)
    grads = VARLEN.backward(out, (q, k, v), out, lse, runs, SCALE)
    assert [grad.shape for grad in grads] == [q.shape, k.shape, v.shape]


@cuda
@layouts
@heads_and_sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_computes_what_the_cpu_does(name, heads, shared, size, dtype):
    tensors = inputs(name, heads, shared, size, dtype=dtype)
    ours = grouped(name, *(tensor.cuda() for tensor in tensors))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert_close(ours, dense(name, *tensors), tolerance)


@cuda
def test_a_gpu_uses_flash_attention_in_half_precision():
    half, whole = (torch.zeros(4, 2, 64, device="cuda", dtype=d) for d in (torch.half, torch.float))
    assert kernels_for(half) is VARLEN
    assert kernels_for(whole) is PLAIN


@layouts
def test_nothing_is_kept_for_the_backward_pass_but_inputs_output_and_one_number_a_row(name):
    kept: list[Tensor] = []
    leaves = [x.requires_grad_() for x in inputs(name, 4, 2, 32, dtype=torch.float32)[:3]]
    rows = [leaf.transpose(0, 1) for leaf in leaves]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        out = grouped_attention(*rows, Layout.of(*LAYOUTS[name]), SCALE)
    numbers = sum(x.numel() for x in (*leaves, out)) + out.shape[0] * out.shape[1]
    assert sum(x.numel() for x in kept) == numbers


@given(st.lists(st.integers(1, 100), min_size=1, max_size=20))
def test_batches_hold_every_run_once_and_little_else(lengths):
    flat = torch.arange(sum(lengths)).view(-1, 1, 1)
    for runs in (Runs(lengths, lengths, causal=True), Runs(lengths, [7] * len(lengths), False)):
        back, taken = torch.full_like(flat, -1), 0
        for asking, _ in runs.batches:
            batch = asking.take(flat)
            taken += batch.shape[0] * batch.shape[2]
            asking.put(back, batch)
        assert torch.equal(back, flat)
        assert taken - len(flat) < 32 * len(lengths)


def test_keys_that_a_mask_would_have_to_hide_are_never_padded():
    runs = Runs([9, 9, 9, 9], [40, 41, 40, 64], causal=False)
    lengths = [asked.take(torch.zeros(185, 1, 1)).shape[2] for _, asked in runs.batches]
    assert sorted(lengths) == [40, 41, 64]
