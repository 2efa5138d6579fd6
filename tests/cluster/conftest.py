"""Whole runs of the command, small enough for a test and on the real parts all the same."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = """
model: tinyworld
data: {{tinyworld: {{train: 48, heldout: 24}}}}
video: {{fps: 1, min_pixels: 784}}
prompt: {{template: tinyworld}}
rollout: {{max_tokens: 48, max_model_len: 256, dtype: float32, group_size: 4}}
learner: {{dtype: float32}}
verifier: {{port: {port}, checks: {{min_think_tokens: 2, repetition_ngram: 6}}}}
pairs: {{reflective_turn: wait}}
evaluation: {{judge: tinyworld, temperature: 1.0, max_tokens: 48, repetition_penalty: 1.0}}
max_logprob_gap: 1.0e-4
checkpoint_every: 1
grpo: {{questions: 16, rollout_batch: 8, train_batch: 8, lr: 1.0e-3}}
dpo: {{batch_pairs: 4, lr: 1.0e-4, shard_pairs: 4}}
schedule: [grpo, dpo, grpo]
"""
RUN_LIMIT_S = 300


Result = tuple[int, str]  # exit status, and everything the command printed


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def choose() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return choose


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE.format(port=free_port()))
    return path


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """`veripo ...` in a process of its own, its output in a pipe."""

    def begin(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "veripo_ray", *map(str, arguments)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return begin


@pytest.fixture(scope="session")
def veripo(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Result]:
    """Exit status and output of `veripo ...`."""

    def run(*arguments: str | Path, limit_s: float = RUN_LIMIT_S) -> Result:
        process = start(*arguments)
        try:
            output, _ = process.communicate(timeout=limit_s)
        finally:
            process.kill()
        return process.returncode, output

    return run


@pytest.fixture(scope="session")
def terminate_when(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Result]:
    """Run `veripo ...` and send it SIGTERM as soon as `reached()`."""

    def run(reached: Callable[[], bool], *arguments: str | Path) -> Result:
        process = start(*arguments)
        deadline = time.monotonic() + RUN_LIMIT_S
        try:
            while not reached():
                assert process.poll() is None, process.stdout and process.stdout.read()
                assert time.monotonic() < deadline, "the run did not get that far"
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=RUN_LIMIT_S)
        finally:
            process.kill()
        return process.returncode, output

    return run
