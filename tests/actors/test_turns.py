"""On shared GPUs one works and the others wait, and waking goes in the order that leaves room."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def played(shipped_checkpoint: Path) -> dict[str, Any]:
    """What `colocated.py` tells: two GPUs, two workers, two ranks, sleep level 2."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1"}  # which only Ray counts
    environment.pop("RAY_ADDRESS", None)
    script = Path(__file__).with_name("colocated.py")
    done = subprocess.run(
        [sys.executable, str(script), str(shipped_checkpoint)],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def _of(played: dict[str, Any], name: str, number: int) -> list[list[Any]]:
    """What one process was asked, in order."""
    return [what for who, which, *what in played["events"] if (who, which) == (name, number)]


def test_a_worker_and_a_rank_have_parts_of_one_gpu(played: dict[str, Any]) -> None:
    *workers_and_ranks, reference = played["gpus"]
    workers, ranks = workers_and_ranks[:2], workers_and_ranks[2:]
    assert workers == ranks
    assert sorted(workers) == [["0"], ["1"]]
    assert reference == workers[1]


def test_workers_start_alone_and_sleep_before_anyone_else_moves_in(played: dict[str, Any]) -> None:
    order = [(who, what[0]) for who, _, *what in played["events"]]
    first_other = next(n for n, (who, _) in enumerate(order) if who != "worker")
    assert sorted(order[:first_other]) == [("worker", "sleep")] * 2 + [("worker", "start")] * 2
    starts = [what for _, _, *what in played["events"] if what[0] == "start"]
    assert sum(bool(sleeps) for _, sleeps, _ in starts) == 2
    assert sum(bool(rests) for _, _, rests in starts) == 1


@pytest.mark.parametrize("number", [0, 1])
def test_a_worker_sleeps_while_others_work_and_wakes_weights_before_its_cache(
    played: dict[str, Any], number: int
) -> None:
    asked = [" ".join(map(str, what)) for what in _of(played, "worker", number)]
    told = [what for what in asked[1:] if what != "sample"]
    update = ["wake weights", "weights", "wake kv_cache"]
    assert told == [
        "sleep 1",  # everyone else starts
        "wake weights kv_cache",  # a group is sampled
        "sleep 1",  # ... and scored by the learner
        "wake weights kv_cache",  # exploring
        "sleep 2",  # the learner steps
        *update,
        "sleep 1",  # the reference takes the weights, and attaches; then the learner steps
        *update,
    ]


def test_nobody_works_on_a_gpu_out_of_turn(played: dict[str, Any]) -> None:
    """Before each thing that ranks and the reference do, all workers were put to sleep."""
    awake: set[int] = set()
    for who, number, what, *_ in played["events"]:
        if who == "worker" and what in ("start", "wake"):
            awake.add(number)
        elif who == "worker" and what == "sleep":
            awake.discard(number)
        elif what in ("grpo step", "dpo step", "logprobs", "attach", "join"):
            assert not awake, (who, what, played["events"])
        elif what == "sample":
            assert number in awake


def test_the_verbs_are_those_that_vllm_has() -> None:
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    assert "level" in inspect.signature(LLMEngine.sleep).parameters
    assert "tags" in inspect.signature(LLMEngine.wake_up).parameters
    assert "enable_sleep_mode" in inspect.signature(EngineArgs).parameters
    spec = find_spec("vllm.v1.worker.gpu_worker")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    assert 'tag="weights"' in source
    assert 'tag="kv_cache"' in source
