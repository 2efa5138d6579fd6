"""A snapshot of weights: how learner, rollout workers and reference hand them to each other.

A snapshot is a plain dict of checkpoint names to numpy arrays, which Ray shares without a copy.
numpy has no bfloat16: its bits travel as uint16, and since no weight of these models is an
integer, uint16 always means bfloat16. The policy version travels beside the snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from veripo_ray.errors import CheckpointError

Snapshot = dict[str, np.ndarray]


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """A contiguous copy in host memory: float32 as it is, bfloat16 as its bits in uint16.

    Raises TypeError for any other dtype.
    """
    host = tensor.detach().to("cpu", copy=True).contiguous()
    if host.dtype == torch.float32:
        return host.numpy()
    if host.dtype == torch.bfloat16:
        return host.view(torch.uint16).numpy()
    raise TypeError(f"weights are float32 or bfloat16, got {host.dtype}")


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """The inverse of `to_array`. Copies only read-only arrays, such as those Ray hands out."""
    owned = array if array.flags.writeable else array.copy()
    tensor = torch.from_numpy(owned)
    if tensor.dtype == torch.uint16:
        return tensor.view(torch.bfloat16)
    if tensor.dtype == torch.float32:
        return tensor
    raise TypeError(f"a snapshot holds float32 or uint16 (bfloat16) arrays, got {array.dtype}")


def load_into(
    parameters: Mapping[str, torch.nn.Parameter], weights: Mapping[str, np.ndarray]
) -> None:
    """Copy a whole snapshot into `parameters`, in place, cast to their dtype and device.

    Raises CheckpointError when a name or a shape differs, before anything is written.
    """
    if differing := sorted(parameters.keys() ^ weights.keys()):
        raise CheckpointError(
            f"snapshot and model differ in {len(differing)} weights, first {differing[0]!r}",
            fix="learner, rollout workers and reference must start from the same checkpoint",
        )
    for name, parameter in parameters.items():
        if tuple(parameter.shape) != weights[name].shape:
            raise CheckpointError(
                f"weight {name!r} has shape {weights[name].shape} in the snapshot, "
                f"{tuple(parameter.shape)} in the model",
                fix="learner, rollout workers and reference must start from the same checkpoint",
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(to_tensor(weights[name]))
