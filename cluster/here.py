"""What this machine has, as a private cluster of one node; without importing torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import psutil

from veripo_ray.placement import Cluster, Node

# Logical CPUs of a private cluster: actors take turns, so a laptop's two cores carry them all.
LOCAL_CPUS = 16
_SMI_S = 10.0
_MIB = 1024**2


def this_machine() -> Cluster:
    """CPUs as `launch` tells Ray, GPUs as far as CUDA_VISIBLE_DEVICES shows them."""
    gpus = gpu_memories() if torch_uses_gpus() else []
    node = Node(
        id="this machine",
        cpus=float(max(LOCAL_CPUS, os.cpu_count() or 1)),
        gpus=float(len(gpus)),
        gpu_memory=min(gpus, default=None),
        memory=float(psutil.virtual_memory().total),
    )
    return Cluster((node,), "this machine")


def torch_uses_gpus() -> bool:
    """Whether the installed torch was built for GPUs."""
    spec = find_spec("torch")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
    return any((folder / f"libtorch_{kind}.so").exists() for kind in ("cuda", "hip"))


def gpu_memories() -> list[float]:
    """Bytes of each GPU that is visible. Asks the driver's tool; where there is none, torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip() in ("", "-1"):
        return []
    try:
        found = _driver_says()
    except (OSError, subprocess.SubprocessError, ValueError):
        return _torch_says()
    return found if visible is None else found[: len(visible.split(","))]


def _driver_says() -> list[float]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise FileNotFoundError("nvidia-smi")
    query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    said = subprocess.run(query, capture_output=True, text=True, timeout=_SMI_S, check=True).stdout
    return [float(line) * _MIB for line in said.splitlines() if line.strip()]


def _torch_says() -> list[float]:
    """Seconds of imports, and right on machines whose driver came without its tools."""
    import torch

    count = torch.cuda.device_count()
    return [float(torch.cuda.get_device_properties(n).total_memory) for n in range(count)]
