"""Checks that load the heavy libraries for real, each in a process of its own.

A library may hang, crash the interpreter or print at length; none of that reaches the doctor.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from typing import Any

from veripo_ray.doctor.finding import Finding
from veripo_ray.doctor.installation import PROJECT, REINSTALL

LIMIT_S = 150.0
_REINSTALL = REINSTALL.format(f"{PROJECT}[cpu]")
_MARK = "veripo-doctor: "
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1"}

_GPU = """
import torch
seen = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
answer = [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GB" for gpu in seen]
"""
_VLLM = "import vllm; from vllm import LLM; answer = vllm.__version__"
_DECORD = "import decord; decord.VideoReader; answer = decord.__version__"
_DEEPSPEED = """
import deepspeed
from deepspeed.accelerator import get_accelerator
answer = [deepspeed.__version__, get_accelerator().device_name()]
"""
# Ray gives itself 30 s to start, which beside the other probes can be too little on two cores.
_RAY = """
import ray
from ray import serve, train

def start():
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="error",
             log_to_driver=False, object_store_memory=100 * 2**20)

try:
    start()
except Exception as error:
    if "timed out during startup" not in str(error):
        raise
    ray.shutdown()
    start()
assert ray.get(ray.remote(lambda: 7).remote(), timeout=100) == 7
ray.shutdown()
answer = ray.__version__
"""


class ProbeError(Exception):
    """A probe did not answer; the text is its last words."""


def gpu() -> Finding:
    """GPUs that torch can use; a CPU build of torch on a machine with a GPU is a mistake."""
    try:
        seen = ask(_GPU)
    except ProbeError as error:
        return Finding("GPU", "fail", f"torch cannot be imported: {error}", _REINSTALL)
    if seen:
        return Finding("GPU", "ok", "; ".join(seen))
    driver = _driver()
    if not driver:
        return Finding("GPU", "ok", "none: runs use the CPU")
    fix = f"pip install '{PROJECT}[gpu]' in place of [cpu], with a torch that the driver supports"
    return Finding("GPU", "warn", f"the driver shows {driver}, but torch sees no GPU", fix)


def vllm() -> Finding:
    """Whether vLLM can be imported, the way the sampler does."""
    return _library("vLLM", _VLLM)


def decord() -> Finding:
    """Whether decord and the codecs it brings can be loaded."""
    return _library("decord", _DECORD)


def deepspeed() -> Finding:
    """Whether DeepSpeed can be imported, and the accelerator it picks."""
    return _library("DeepSpeed", _DEEPSPEED)


def ray() -> Finding:
    """Whether a Ray of its own starts here and runs a task."""
    fix = "read Ray's logs in its session_latest folder; a proxy or a full disk is the usual cause"
    return _library("Ray", _RAY, fix=fix, works="{}: starts and runs a task")


def _library(name: str, source: str, *, fix: str = _REINSTALL, works: str = "{}") -> Finding:
    try:
        answer = ask(source)
    except ProbeError as error:
        return Finding(name, "fail", str(error), fix)
    words = ", ".join(answer) if isinstance(answer, list) else answer
    return Finding(name, "ok", works.format(words))


def ask(source: str, limit_s: float = LIMIT_S) -> Any:
    """Run `source` in a fresh interpreter; the value it leaves in `answer`, through JSON.

    Raises:
        ProbeError: it failed (its last line of output), or did not end within `limit_s` seconds.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", f"{source}\nimport json; print('\\n{_MARK}' + json.dumps(answer))"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | _ENVIRONMENT,
        start_new_session=True,
    )
    lines = _output(child, limit_s).strip().splitlines()
    answers = [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
    if child.returncode or not answers:
        raise ProbeError(lines[-1] if lines else f"it ended with status {child.returncode}")
    return json.loads(answers[-1])


def _output(child: subprocess.Popen[str], limit_s: float) -> str:
    try:
        return child.communicate(timeout=limit_s)[0]
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        raise ProbeError(f"no answer within {limit_s:g} s") from None


def _driver() -> str:
    """What NVIDIA's driver says of the first GPU, or nothing."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.partition("\n")[0] if done.returncode == 0 else ""
