"""`veripo doctor`: every check ends, survives its own failure, and says what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from veripo_ray import doctor
from veripo_ray.doctor import Finding


def test_this_installation_can_run_everything():
    # Memory, disk and ports depend on what else the machine is doing at this moment.
    findings = {finding.name: finding for finding in doctor.diagnose()}
    software = ["Python", "libraries", "vLLM version", "import fixes", "torchvision", "torchaudio"]
    loaded = ["GPU", "vLLM", "DeepSpeed", "decord", "Ray"]
    assert {
        name: findings[name] for name in software + loaded if findings[name].status == "fail"
    } == {}
    assert len(findings) == len(doctor.CHECKS)


def test_findings_come_in_the_order_of_the_checks_and_a_failing_check_is_one_of_them():
    def slow_one() -> Finding:
        time.sleep(0.2)
        return Finding("slow", "ok", "fine")

    def broken_one() -> Finding:
        raise OSError("no such device")

    slow, broken = doctor.diagnose([slow_one, broken_one])
    assert (slow.name, slow.status) == ("slow", "ok")
    assert (broken.name, broken.status) == ("broken one", "fail")
    assert "OSError: no such device" in broken.seen


def test_a_check_that_hangs_is_reported_when_its_time_is_up():
    def never_ending() -> Finding:
        time.sleep(30)
        return Finding("late", "ok", "")

    started = time.monotonic()
    (finding,) = doctor.diagnose([never_ending], limit_s=0.1)
    assert time.monotonic() - started < 10
    assert (finding.name, finding.status, finding.seen) == (
        "never ending",
        "fail",
        "no answer in time",
    )


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_exit_code_is_1_only_when_a_run_could_not_start(monkeypatch, capsys, status, code):
    finding = Finding("tea", status, "the pot is [cold]", "boil water")
    monkeypatch.setattr(doctor, "diagnose", lambda: [finding])
    assert doctor.main() == code
    printed = capsys.readouterr().out
    assert "the pot is [cold]" in printed
    assert "fix: boil water" in printed
    assert ("Ready." in printed) == (code == 0)


def test_ctrl_c_is_not_held_up_by_a_hanging_check():
    source = (
        "import signal, time; from veripo_ray import doctor\n"
        # Where the tests run in a shell's background, SIGINT is ignored, and so in their children.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def hang(): time.sleep(60)\n"
        "print('on', flush=True); doctor.diagnose([hang])"
    )
    child = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "on\n"
    os.kill(child.pid, signal.SIGINT)
    child.communicate(timeout=20)
    assert child.returncode != 0
