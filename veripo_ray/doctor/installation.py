"""Checks of what is installed: versions against the package's own metadata, builds that differ."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from veripo_ray import compat
from veripo_ray.doctor.finding import Finding, Status

PROJECT = "veripo-ray"
_KNOWN_BUILD = re.compile(r"cpu$|cu\d+$|rocm")
REINSTALL = "install the project with its dependencies: `make install`, or pip install '{}'"


def python_version() -> Finding:
    """The interpreter against the package's requires-python."""
    supported = metadata(PROJECT)["Requires-Python"]
    seen = platform.python_version()
    if SpecifierSet(supported).contains(seen, prereleases=True):
        return Finding("Python", "ok", seen)
    return Finding("Python", "fail", f"{seen}, not {supported}", "use Python 3.11")


def library_versions() -> Finding:
    """Every dependency against the range that the package's metadata states."""
    wanted = list(_requirements(extra=""))
    problems = [problem for requirement in wanted if (problem := _problem(requirement))]
    if not problems:
        return Finding("libraries", "ok", f"{len(wanted)} within their supported ranges")
    return Finding("libraries", "fail", "; ".join(problems), REINSTALL.format(f"{PROJECT}[cpu]"))


def vllm_version() -> Finding:
    """Exactly one of the distributions that provide the `vllm` module, in the supported version."""
    wanted = [*_requirements(extra="cpu"), *_requirements(extra="gpu")]
    found = [requirement for requirement in wanted if installed(requirement.name)]
    if not found:
        fix = REINSTALL.format(f"{PROJECT}[gpu]' or '{PROJECT}[cpu]")
        return Finding("vLLM version", "fail", "not installed", fix)
    if len(found) > 1:
        names = [requirement.name for requirement in found]
        seen = f"{' and '.join(names)} are both installed and overwrite each other's files"
        fix = f"pip uninstall {' '.join(names)}, then install one of them"
        return Finding("vLLM version", "fail", seen, fix)
    if problem := _problem(found[0]):
        return Finding("vLLM version", "fail", problem, f"pip install '{found[0]}'")
    return Finding("vLLM version", "ok", f"{found[0].name} {installed(found[0].name)}")


def import_fixes() -> Finding:
    """Whether `veripo_ray_compat.pth` armed the import fixes when this interpreter started."""
    if compat.TorchvisionFinder in sys.meta_path:
        return Finding("import fixes", "ok", "armed at interpreter start")
    seen = "veripo_ray_compat.pth did not run: it is missing from site-packages"
    status: Status = "fail" if compat.torch_is_cpu_only() else "warn"
    return Finding("import fixes", status, seen, REINSTALL.format(PROJECT))


def torchvision_build() -> Finding:
    """Whether torch and torchvision were built for the same CUDA, or both for none."""
    torch, vision = compat.build_of("torch"), compat.build_of("torchvision")
    if torch is None or vision is None:
        missing = "torch" if torch is None else "torchvision"
        return Finding("torchvision", "fail", f"{missing} is missing", REINSTALL.format(PROJECT))
    seen = f"torch is a {torch or 'plain'} build, torchvision a {vision or 'plain'} one"
    if torch == vision or not _KNOWN_BUILD.match(torch) or not _KNOWN_BUILD.match(vision):
        return Finding("torchvision", "ok", seen)
    if torch == "cpu":
        return Finding("torchvision", "ok", f"{seen}; veripo_ray.compat lets it be imported")
    fix = "install torch and torchvision from the same index, for the same CUDA"
    return Finding("torchvision", "fail", seen, fix)


def torchaudio_build() -> Finding:
    """Nothing here uses torchaudio, but vLLM imports it where it is, and dies if it cannot load."""
    torch, audio = compat.build_of("torch"), compat.build_of("torchaudio")
    if audio is None:
        return Finding("torchaudio", "ok", "not installed, and not needed")
    seen = f"torch is a {torch or 'plain'} build, torchaudio a {audio or 'plain'} one"
    if audio == torch:
        return Finding("torchaudio", "ok", seen)
    if torch == "cpu":
        seen += "; veripo_ray.compat hides it"
    return Finding("torchaudio", "warn", seen, "pip uninstall torchaudio")


def installed(distribution: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _requirements(extra: str) -> Iterator[Requirement]:
    """What the package always needs (extra ""), or what one extra adds to it."""
    for requirement in map(Requirement, requires(PROJECT) or ()):
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always if not extra else marker and not always and marker.evaluate({"extra": extra}):
            yield requirement


def _problem(requirement: Requirement) -> str:
    seen = installed(requirement.name)
    if seen is None:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(seen, prereleases=True):
        return ""
    return f"{requirement.name} {seen} is not {requirement.specifier}"
