"""The import fixes: they reach every process, act only where needed, and cost next to nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import pytest

from veripo_ray import compat as armed

SOURCE = Path(armed.__file__)


def python(source: str, *options: str, path: Path | None = None) -> str:
    """What `source` prints in a fresh interpreter, `path` being searched before all else."""
    command = [sys.executable, *options, "-c", source]
    env = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def compat() -> ModuleType:
    """A second copy of the module, so that the armed one stays as it is."""
    spec = importlib.util.spec_from_file_location("compat_copy", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def torchaudio(tmp_path, monkeypatch):
    """Puts a torchaudio of some build on the path; the CUDA one dies of its library."""

    def put(build: str) -> Path:
        folder = tmp_path / "torchaudio"
        folder.mkdir()
        (folder / "version.py").write_text(f"__version__ = '2.11.0{build}'\ngit_version = 'a'\n")
        loads = "" if build == "+cpu" else "raise OSError('libcudart.so.13: cannot open')"
        (folder / "__init__.py").write_text(loads)
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    yield put
    sys.modules.pop("torchaudio", None)


def test_the_fixes_are_armed_at_start_and_nothing_heavy_is_imported():
    source = """
import sys
assert "veripo_ray.compat" in sys.modules
print(*(name for name in sys.modules if name.split(".")[0] in
        ("torch", "torchvision", "numpy", "typing", "re", "ray", "pydantic", "transformers")))
"""
    assert python(source, "-I") == ""


def test_torchvision_and_its_transforms_work_in_a_fresh_process():
    source = """
import torch, torchvision
from torchvision.transforms import v2
frames = torch.full((2, 3, 8, 8), 7, dtype=torch.uint8)
print(torch.equal(v2.functional.resize(frames, [4, 4]), frames[..., :4, :4]))
try:
    print(torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0])
except RuntimeError as error:  # declared but not implemented: an error, never a wrong answer
    print("C++ ops" in str(error))
"""
    assert python(source).split() == ["True", "True"]


def test_the_fixes_reach_ray_workers(ray_session):
    import ray

    @ray.remote
    def imports() -> bool:
        import torchvision.transforms.v2

        return "veripo_ray.compat" in sys.modules and hasattr(torchvision.transforms, "v2")

    assert ray.get(imports.remote(), timeout=90)


def test_a_torchaudio_that_cannot_load_acts_as_absent_in_every_process(torchaudio):
    source = """
import importlib.util
print(importlib.util.find_spec("torchaudio"))
try:
    import torchaudio
except ModuleNotFoundError:
    print("absent")
"""
    assert python(source, path=torchaudio("+cu130")).split() == ["None", "absent"]


def test_a_torchaudio_that_can_load_is_left_alone(compat, torchaudio, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    torchaudio("+cpu")
    compat.install()
    assert importlib.util.find_spec("torchaudio") is not None


def test_a_cuda_torchaudio_beside_a_cuda_torch_is_left_alone(compat, torchaudio, monkeypatch):
    monkeypatch.setattr(compat, "torch_is_cpu_only", lambda: False)
    torchaudio("+cu130")
    assert not compat.torchaudio_cannot_load()


def test_arming_twice_changes_nothing(compat, torchaudio, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    torchaudio("+cu130")
    for _ in range(2):
        compat.install()
    assert sys.meta_path == [compat.TorchvisionFinder, PathFinder]
    assert sys.modules["torchaudio"] is None


@pytest.mark.parametrize(
    ("has_ops", "cpu_only", "declared"),
    [(False, True, 1), (True, True, 0), (False, False, 0), (True, False, 0)],
)
def test_operators_are_declared_only_where_torchvision_lost_its_own(
    compat, tmp_path, monkeypatch, has_ops, cpu_only, declared
):
    (tmp_path / "extension.py").write_text(f"def _has_ops(): return {has_ops}\n")
    monkeypatch.setattr(compat, "torch_is_cpu_only", lambda: cpu_only)
    calls: list[str] = []
    monkeypatch.setattr(compat, "_declare_missing_operators", lambda: calls.append("declared"))
    spec = compat.TorchvisionFinder.find_spec("torchvision.extension", [str(tmp_path)])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module._has_ops() is has_ops
    assert len(calls) == declared


def test_no_other_module_is_touched(compat, tmp_path):
    assert compat.TorchvisionFinder.find_spec("torchvision") is None
    assert compat.TorchvisionFinder.find_spec("torchvision.extension", [str(tmp_path)]) is None


def test_the_declared_operators_exist_and_have_no_kernel(compat, monkeypatch):
    import torch

    monkeypatch.setattr(compat, "_NAMESPACE", "veripo_compat_test")
    compat._declare_missing_operators()
    boxes = torch.zeros(1, 4)
    with pytest.raises(NotImplementedError):
        torch.ops.veripo_compat_test.nms(boxes, torch.ones(1), 0.5)
    with pytest.raises(NotImplementedError):
        torch.ops.veripo_compat_test.qnms(boxes, torch.ones(1), 0.5)


def test_builds_are_read_from_version_files(compat, tmp_path, monkeypatch):
    for name, version in {"labelled": "'1.2+cu130'", "plain": '"1.2"'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "version.py").write_text(f"import os\n__version__ = {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [compat.build_of(name) for name in ("labelled", "plain", "not_there")] == [
        "cu130",
        "",
        None,
    ]


def test_the_start_up_line_is_silent_when_the_package_is_gone():
    line = SOURCE.with_suffix(".pth").read_text()
    assert line.count("\n") == 1
    assert line.startswith("import ")  # what makes the interpreter run it
    probe = f"exec({line!r}); import sys; print('veripo_ray.compat' in sys.modules)"
    assert python(probe, "-I", "-S") == "False"


def test_openrlhf_can_be_imported_and_flash_attn_still_counts_as_absent():
    source = """
import importlib.util
from veripo_ray.compat import stand_in_flash_attn
stand_in_flash_attn()
from openrlhf.models.ring_attn_utils import index_first_axis, pad_input, rearrange, unpad_input
from transformers.utils import is_flash_attn_2_available
assert importlib.util.find_spec("flash_attn") is None
assert not is_flash_attn_2_available()
print(index_first_axis.__module__)
"""
    assert python(source).splitlines()[-1] == "veripo_ray.flash_attn_stand_in"


def test_a_real_flash_attn_is_not_replaced(compat, tmp_path, monkeypatch):
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "flash_attn.bert_padding", raising=False)
    compat.stand_in_flash_attn()
    assert "flash_attn.bert_padding" not in sys.modules
