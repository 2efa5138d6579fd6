"""Weights in transit: how learner, rollout workers and reference hand them to each other.

A weight is named as in a checkpoint and travels as a numpy array, which Ray shares without a copy.
numpy has no bfloat16: its bits travel as uint16, and since no weight of these models is an
integer, uint16 always means bfloat16. A manifest goes ahead and tells what will come; the weights
follow in buckets, each a snapshot of some of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from veripo_ray.errors import CheckpointError, VeripoError

Snapshot = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a sync brings. version: what the weights are called; dtype: 'float32' or 'bfloat16';
    shapes: by name, in the order of their coming."""

    version: int
    dtype: str
    shapes: dict[str, tuple[int, ...]]

    @property
    def largest_bytes(self) -> int:
        """Of one weight."""
        width = 2 if self.dtype == "bfloat16" else 4
        return width * max(math.prod(shape) for shape in self.shapes.values())

    @classmethod
    def of(cls, version: int, weights: Mapping[str, np.ndarray]) -> Manifest:
        """Of a whole snapshot."""
        dtype = "bfloat16" if any(a.dtype == np.uint16 for a in weights.values()) else "float32"
        return cls(version, dtype, shapes_of(weights))


class Update:
    """The books of one update: what of a manifest has not come yet."""

    def __init__(self, manifest: Manifest, mine: Shapes) -> None:
        """mine: the weights that the receiver has to get. Raises CheckpointError when the manifest
        has others."""
        if problems := differences(manifest.shapes, mine):
            raise CheckpointError(
                f"a weight update does not fit the policy in {len(problems)} weights: "
                + "; ".join(problems[:5]),
                fix="learner, rollout workers and reference must start from the same checkpoint",
            )
        self.version = manifest.version
        self._missing = dict(manifest.shapes)

    def arrived(self, shapes: Shapes) -> None:
        """Note that these have come. Raises CheckpointError for what the manifest did not say."""
        promised = {name: self._missing[name] for name in shapes if name in self._missing}
        if problems := differences(shapes, promised):
            raise CheckpointError(
                f"weights came that were not announced like this: {'; '.join(problems[:5])}",
                fix="repeat the update",
            )
        for name in shapes:
            del self._missing[name]

    def require_whole(self) -> None:
        if self._missing:
            names = list(self._missing)
            raise VeripoError(
                f"the weight update to version {self.version} ended without {len(names)} weights, "
                f"first {names[0]!r}",
                fix="repeat the update",
            )


def stale_error(version: int, who: str) -> VeripoError:
    """Of someone whose weights may be half old, half new."""
    return VeripoError(
        f"the weight update after version {version} failed or is still to come, and nothing is "
        "computed from weights that may be half old, half new",
        fix=f"repeat the update, or start a new {who}",
    )


def shapes_of(weights: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in weights.items()}


def differences(found: Shapes, wanted: Shapes) -> list[str]:
    """What is wrong with every weight, by name, that is not as wanted."""
    problems = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    problems += [f"{name} is unknown" for name in found.keys() - wanted.keys()]
    problems += [
        f"{name} is {found[name]} instead of {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if found[name] != wanted[name]
    ]
    return sorted(problems)


def buckets(weights: Iterable[tuple[str, np.ndarray]], size: int) -> Iterator[Snapshot]:
    """Weights in order, cut so that each part has at most `size` bytes, but for a weight that alone
    has more."""
    bucket: Snapshot = {}
    filled = 0
    for name, array in weights:
        if bucket and filled + array.nbytes > size:
            yield bucket
            bucket, filled = {}, 0
        bucket[name] = array
        filled += array.nbytes
    if bucket:
        yield bucket


def to_array(tensor: torch.Tensor, *, copy: bool = True) -> np.ndarray:
    """Contiguous, in host memory: float32 as it is, bfloat16 as its bits in uint16.

    copy: whether the array has to outlive a change of the tensor. Raises TypeError for any other
    dtype.
    """
    host = tensor.detach().to("cpu", copy=copy).contiguous()
    if host.dtype == torch.float32:
        return host.numpy()
    if host.dtype == torch.bfloat16:
        return host.view(torch.uint16).numpy()
    raise TypeError(f"weights are float32 or bfloat16, got {host.dtype}")


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """The inverse of `to_array`, in the array's own memory: not to be written to, since what Ray
    hands out is read-only, and others read it too."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    if tensor.dtype == torch.uint16:
        return tensor.view(torch.bfloat16)
    if tensor.dtype == torch.float32:
        return tensor
    raise TypeError(f"a snapshot holds float32 or uint16 (bfloat16) arrays, got {array.dtype}")
