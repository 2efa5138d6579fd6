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
from veripo_ray.scoring import maths, maths_child


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
        maths.equal("17", "17.0")
    assert maths.equal("17", "17.0")  # a failure is not remembered


def test_equal_questions_are_asked_once(monkeypatch):
    assert maths.equal("19", "19.0")
    monkeypatch.setattr(maths, "_THE_CHILD", None)
    assert maths.equal("19", "19.0")


def test_what_is_too_long_for_an_answer_never_reaches_the_child(monkeypatch):
    monkeypatch.setattr(maths, "_THE_CHILD", None)
    assert not maths.parses("1+" * 2**20 + "1")


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
    command = [sys.executable, "-c", script]
    _wait_until_gone(int(subprocess.check_output(command, env=env, timeout=120)))


def _wait_until_gone(pid: int) -> None:
    for _ in range(200):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} outlived its parent")


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [("x", "$x$", True), (r"\frac{1}{2}", "0.50", True), ("2", "3", False), ("2", "(1, 2]", False)],
)
def test_what_the_child_answers(gold, answer, equal):
    request = {"op": "equal", "gold": gold, "answer": answer}
    assert maths_child._answer(request, 3) == {"result": equal}


def test_the_child_says_when_it_ran_out_of_time():
    request = {"op": "equal", "gold": "2", "answer": "9^{9^{9^9}}"}
    assert "more than 1 s" in maths_child._answer(request, 1)["error"]


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_the_child_says_when_an_expression_is_too_large(monkeypatch, error):
    def explode(*_: object, **__: object) -> None:
        raise error

    for step in ("parse", "verify"):
        with monkeypatch.context() as patch:
            patch.setattr(f"math_verify.{step}", explode)
            reply = maths_child._answer({"op": "equal", "gold": "2", "answer": "2"}, 3)
            assert "too large" in reply["error"]


def test_whatever_the_parser_raises_at_is_no_mathematics(monkeypatch):
    def confused(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("math_verify.parse", confused)
    assert maths_child._answer({"op": "parses", "gold": "2"}, 3) == {"result": False}
