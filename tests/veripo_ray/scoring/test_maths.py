"""Formulas are compared in a bounded child process that survives what it is given."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from veripo_ray.errors import ResourceError, ScoringError
from veripo_ray.scoring import maths


def test_formulas_are_compared_outside_the_main_thread():
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(maths.equal, [r"\frac{1}{2}"] * 8, ["0.5", "0.6"] * 4))
    assert results == [True, False] * 4


def test_delimiters_do_not_matter():
    assert maths.equal("x^2+1", "$1+x^2$")
    assert maths.equal(r"\boxed{3}", "3")


def test_what_is_no_mathematics_does_not_parse_and_equals_nothing():
    assert not maths.parses("???")
    assert not maths.parses("")
    assert not maths.equal(r"\frac{1}{2}", r"\frac{1}{")
    assert not maths.equal("x", "(1, 2]")


def test_the_next_comparison_works_after_a_child_was_lost():
    assert maths.parses("x + 1")
    maths._THE_CHILD._process.kill()
    with pytest.raises(ScoringError):
        maths.equal("1", "1.0")
    assert maths.equal("1", "1.0")


def test_a_child_that_cannot_start_is_a_resource_error(monkeypatch, tmp_path):
    broken = tmp_path / "child.py"
    broken.write_text("raise SystemExit(1)")
    monkeypatch.setattr(maths, "_CHILD", broken)
    with pytest.raises(ResourceError, match="maths process"):
        maths._Child().ask(op="parses", gold="x")


def test_the_child_ends_with_its_parent():
    script = (
        "from veripo_ray.scoring import maths; import os; maths.parses('x + 2');"
        "print(maths._THE_CHILD._process.pid, flush=True); os._exit(0)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
    )
    _wait_until_gone(int(done.stdout))


def _wait_until_gone(pid: int) -> None:
    for _ in range(200):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} outlived its parent")
