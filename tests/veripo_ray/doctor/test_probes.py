"""The doctor's probes: heavy libraries are loaded elsewhere, and nothing they do comes through."""

from __future__ import annotations

import time

import pytest

from veripo_ray.doctor import probes
from veripo_ray.doctor.probes import ProbeError


def test_an_answer_is_found_among_chatter():
    chatter = "import sys; print('hello'); print('warning', file=sys.stderr); answer = ['a', 1]"
    assert probes.ask(chatter) == ["a", 1]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import not_a_module_at_all", "No module named 'not_a_module_at_all'"),
        ("import os; os.abort()", "status -6"),
        ("import sys; sys.exit('no licence')", "no licence"),
        ("import os; os._exit(0)", "status 0"),
    ],
)
def test_a_library_that_fails_leaves_its_last_words(source, words):
    with pytest.raises(ProbeError, match=words):
        probes.ask(source)


def test_a_library_that_hangs_is_ended_with_all_that_it_started():
    source = (
        "import subprocess, sys; subprocess.Popen(['sleep', '60']); import time; time.sleep(60)"
    )
    started = time.monotonic()
    with pytest.raises(ProbeError, match=r"no answer within 1\.5 s"):
        probes.ask(source, limit_s=1.5)  # returns only when the grandchild let go of the pipe
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("check", [probes.vllm, probes.decord, probes.deepspeed, probes.ray])
def test_a_broken_library_is_a_failure_with_a_fix(monkeypatch, check):
    def broken(source):
        raise ProbeError("undefined symbol: cudaFree")

    monkeypatch.setattr(probes, "ask", broken)
    finding = check()
    assert (finding.status, finding.seen) == ("fail", "undefined symbol: cudaFree")
    assert finding.fix


@pytest.mark.parametrize(
    ("gpus", "driver", "status", "seen"),
    [
        (["H200, 140 GB"], "H200, 580.1", "ok", "H200, 140 GB"),
        ([], "", "ok", "none: runs use the CPU"),
        ([], "H200, 580.1", "warn", "the driver shows H200, 580.1, but torch sees no GPU"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_noticed(monkeypatch, gpus, driver, status, seen):
    monkeypatch.setattr(probes, "ask", lambda source: gpus)
    monkeypatch.setattr(probes, "_driver", lambda: driver)
    finding = probes.gpu()
    assert (finding.status, finding.seen) == (status, seen)
    assert ("veripo-ray[gpu]" in finding.fix) == (status == "warn")


def test_a_torch_that_cannot_be_imported_is_a_failure(monkeypatch):
    def broken(source):
        raise ProbeError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(probes, "ask", broken)
    finding = probes.gpu()
    assert finding.status == "fail"
    assert "libcudart.so.13" in finding.seen


@pytest.mark.parametrize(
    ("script", "seen"), [("echo 'H200, 580.1'", "H200, 580.1"), ("exit 9", "")]
)
def test_the_driver_is_asked_through_its_own_tool(monkeypatch, tmp_path, script, seen):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert probes._driver() == seen
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probes._driver() == ""
