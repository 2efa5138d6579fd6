"""Weights cross processes unchanged, and only into a model that has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from veripo_ray.errors import CheckpointError, VeripoError
from veripo_ray.weights import Manifest, Update, buckets, shapes_of, to_array, to_tensor


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


WEIGHTS = {
    name: np.full(shape, n, np.float32)
    for n, (name, shape) in enumerate({"a": (2, 3), "b": (6,), "c": (1,), "d": (2, 9)}.items())
}


@pytest.mark.parametrize(
    ("size", "cut"),
    [(4, ["a", "b", "c", "d"]), (50, ["ab", "c", "d"]), (60, ["abc", "d"]), (999, ["abcd"])],
)
def test_buckets_keep_the_order_and_no_more_than_their_size_but_for_a_larger_weight(size, cut):
    assert ["".join(bucket) for bucket in buckets(WEIGHTS.items(), size)] == cut


def test_an_update_is_whole_when_all_that_was_announced_has_come():
    update = Update(Manifest.of(3, WEIGHTS), shapes_of(WEIGHTS))
    first, *others = buckets(WEIGHTS.items(), 60)
    update.arrived(shapes_of(first))
    with pytest.raises(VeripoError, match="version 3 ended without 1 weights, first 'd'"):
        update.require_whole()
    for bucket in others:
        update.arrived(shapes_of(bucket))
    update.require_whole()


@pytest.mark.parametrize(
    ("bucket", "problem"),
    [
        ({"e": (1,)}, "e is unknown"),
        ({"a": (3, 2)}, r"a is \(3, 2\) instead of \(2, 3\)"),
        ({"b": (6,)}, "b is unknown"),  # for the second time
    ],
)
def test_a_bucket_of_something_else_than_was_announced_is_refused(bucket, problem):
    update = Update(Manifest.of(3, WEIGHTS), shapes_of(WEIGHTS))
    update.arrived({"b": (6,)})
    with pytest.raises(CheckpointError, match=problem):
        update.arrived(bucket)


def test_a_manifest_of_other_weights_than_ones_own_is_refused():
    mine = {"a": (2, 3), "b": (7,), "f": (1,)}
    with pytest.raises(
        CheckpointError, match=r"in 4 weights: b is \(6,\) instead .*; c is unknown"
    ):
        Update(Manifest.of(3, WEIGHTS), mine)
