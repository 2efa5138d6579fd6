"""Weights cross processes unchanged, and only into a model that has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from veripo_ray.errors import CheckpointError
from veripo_ray.weights import load_into, to_array, to_tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_comes_back_to_the_bit(dtype):
    tensor = torch.randn(5, 7).to(dtype)
    array = to_array(tensor)
    array.flags.writeable = False  # as Ray hands it out
    back = to_tensor(array)
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_an_array_does_not_change_with_the_weight_it_was_taken_from():
    tensor = torch.ones(3)
    array = to_array(tensor)
    tensor.zero_()
    np.testing.assert_array_equal(array, np.ones(3, np.float32))


def test_a_transposed_weight_is_made_contiguous():
    assert to_array(torch.randn(3, 4).T).flags.c_contiguous


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="float16"):
        to_array(torch.zeros(2, dtype=torch.float16))
    with pytest.raises(TypeError, match="int32"):
        to_tensor(np.zeros(2, np.int32))


def test_a_snapshot_fills_a_model_of_another_dtype():
    model = nn.Linear(3, 2).bfloat16()
    wanted = {"weight": torch.ones(2, 3), "bias": torch.full((2,), 0.5)}
    load_into(dict(model.named_parameters()), {n: to_array(w) for n, w in wanted.items()})
    assert torch.equal(model.weight, wanted["weight"].bfloat16())
    assert torch.equal(model.bias, wanted["bias"].bfloat16())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights.pop("bias"), "'bias'"),
        (lambda weights: weights.update(extra=np.zeros(1, np.float32)), "'extra'"),
        (lambda weights: weights.update(bias=np.zeros(3, np.float32)), r"'bias' has shape \(3,\)"),
    ],
)
def test_a_snapshot_that_does_not_fit_changes_nothing(change, named):
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    weights = {name: to_array(torch.zeros_like(w)) for name, w in model.named_parameters()}
    change(weights)
    with pytest.raises(CheckpointError, match=named):
        load_into(dict(model.named_parameters()), weights)
    assert torch.equal(model.weight, before)
