"""What all tests share: a quiet CPU environment, one Ray, one tiny checkpoint."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline for one example: on a busy machine the first one pays for imports and page faults.
settings.register_profile("veripo", deadline=None)
settings.load_profile("veripo")

# Set before anything heavy is imported, and inherited by every process that the tests start.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": os.environ.get("VERIPO_TEST_CUDA", ""),  # GPUs that tests may see
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_COMPILE_DISABLE": "1",  # otherwise vLLM's first answer on a CPU takes half a minute
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
os.environ.update(ENVIRONMENT)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """DeepSpeed holds on to a process's first process group for life; vLLM takes it down when its
    engine closes. In one process they go together only in this order: these tests come last."""
    last = ("tests/veripo_ray/sampler/", "tests/veripo_ray/test_flash_attn_stand_in.py")
    place = {name: number for number, name in enumerate(last, 1)}
    items.sort(key=lambda item: next((n for p, n in place.items() if item.nodeid.startswith(p)), 0))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[str]:
    """One Ray of eight logical CPUs for every test that needs one. Yields its namespace.

    A test that deploys to Serve or names an actor takes it down again itself.
    """
    import ray

    namespace = "veripo-tests"
    ray.init(
        address="local",  # never a cluster that happens to run on this machine
        num_cpus=8,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=300 * 1024**2,
        namespace=namespace,
        logging_level="error",
        log_to_driver=False,
    )
    yield namespace
    if "ray.serve" in sys.modules:
        sys.modules["ray.serve"].shutdown()
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A freshly initialised tiny Qwen2.5-VL with tokenizer, chat template and processor."""
    from veripo_ray.tinyworld.checkpoint import build_checkpoint

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    build_checkpoint(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def shipped_checkpoint() -> Path:
    """The trained tiny checkpoint that the package ships."""
    return Path(str(files("veripo_ray.tinyworld"))) / "checkpoint"
