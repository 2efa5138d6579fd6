"""The import fixes that a PyTorch without CUDA needs, each acting only where it is needed.

The package index carries torchvision and torchaudio as CUDA builds only. Beside a CPU build of
torch their C++ libraries cannot load, and `import vllm` or `import transformers` dies with them:

- torchvision registers shape functions for its operators `nms` and `qnms`, which then do not
  exist. Declaring the two is enough; calling one still fails, saying that it has no kernel.
- torchaudio raises OSError where its users expect ImportError. It is made to act as absent.

`veripo_ray_compat.pth`, installed beside the package, calls `install` at interpreter start, so
that the fixes reach every process, the subprocesses of vLLM and Ray's workers included. Start-up
imports neither torch nor anything of this project beyond this file. Where torch is a CUDA build
nothing changes: builds that do not match are then an error to see (`veripo doctor` explains it).

`stand_in_flash_attn` is different: nothing calls it unless a test or benchmark does.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder, SourceFileLoader

TYPE_CHECKING = False  # the name without the 5 ms that importing `typing` costs
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_NAMESPACE = "torchvision"
_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list = []  # torch.library.Library objects; an operator lives as long as its library


def install() -> None:
    """Arm the fixes in this process; a second call changes nothing. Costs well under 1 ms."""
    if TorchvisionFinder not in sys.meta_path:
        sys.meta_path.insert(0, TorchvisionFinder)
    if "torchaudio" not in sys.modules and torchaudio_cannot_load():
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # absent to import and find_spec


def torch_is_cpu_only() -> bool:
    """Whether the installed torch lacks the CUDA library that CUDA builds of others link to."""
    folder = _folder("torch")
    return folder is not None and not os.path.exists(f"{folder}/lib/libtorch_cuda.so")


def torchaudio_cannot_load() -> bool:
    """Whether a CUDA build of torchaudio lies beside a torch without CUDA."""
    return (build_of("torchaudio") or "").startswith("cu") and torch_is_cpu_only()


def build_of(package: str) -> str | None:
    """The build label of torch, torchvision or torchaudio, read without importing it.

    "cu130" for version 1.2.3+cu130, "" for 1.2.3, None where the package is not installed.
    """
    folder = _folder(package)
    if folder is None:
        return None
    with open(f"{folder}/version.py", encoding="utf-8") as file:
        version = file.read().partition("__version__ = ")[2].partition("\n")[0]
    return version.strip("'\"").partition("+")[2]


def _folder(package: str) -> str | None:
    spec = PathFinder.find_spec(package)
    return os.path.dirname(spec.origin) if spec and spec.origin else None


class TorchvisionFinder:
    """Finds `torchvision.extension`, the module that loads the C++ library, and only that."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision.extension":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _ExtensionLoader(spec.loader.name, spec.loader.path)
        return spec


class _ExtensionLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if not module._has_ops() and torch_is_cpu_only():
            _declare_missing_operators()


def _declare_missing_operators() -> None:
    import torch

    library = torch.library.Library(_NAMESPACE, "DEF")
    for schema in _MISSING_OPERATORS:
        library.define(schema)
    _libraries.append(library)


def stand_in_flash_attn() -> None:
    """Let openrlhf be imported where flash-attn is not installed (it needs a GPU to be built).

    Provides the two submodules that openrlhf imports, in plain torch. There is no parent package
    `flash_attn`, so transformers and vLLM, which look for that, still find it absent.
    """
    from importlib.util import find_spec

    if find_spec("flash_attn") is None:
        from veripo_ray import flash_attn_stand_in as stand_in

        sys.modules["flash_attn.bert_padding"] = stand_in
        sys.modules["flash_attn.utils.distributed"] = stand_in
