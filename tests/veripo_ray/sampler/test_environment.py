"""What the sampler tells vLLM through the environment."""

from __future__ import annotations

import os

from veripo_ray import config
from veripo_ray.sampler.engine import set_environment


def test_the_users_own_values_stay(monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    set_environment(config.Rollout(kv_cache_gb=3), "cpu")
    assert os.environ["VLLM_LOGGING_LEVEL"] == "INFO"
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "3"


def test_a_gpu_compiles(monkeypatch):
    monkeypatch.delenv("TORCH_COMPILE_DISABLE")
    set_environment(config.Rollout(), "cuda")
    assert "TORCH_COMPILE_DISABLE" not in os.environ
