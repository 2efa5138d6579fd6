"""What all tests share: a quiet CPU environment, one Ray, one tiny checkpoint."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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


@pytest.fixture(scope="session", autouse=True)
def _caches_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests, and the processes that they start, neither find nor leave features in the user's own
    cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


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

    from deployments.env import PROXY_ENV

    namespace = "veripo-tests"
    with pytest.MonkeyPatch.context() as environment:
        for name, value in PROXY_ENV.items():
            environment.setenv(name, value)
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
def qwen3_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A freshly initialised tiny Qwen3-VL, two deepstack levels, that spells its text in bytes."""
    import torch
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    folder = tmp_path_factory.mktemp("checkpoint") / "qwen3"
    tokenizer = byte_tokenizer()
    pixels = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        video_processor=Qwen3VLVideoProcessor(**pixels),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)
    common = {"initializer_range": 0.15, "hidden_size": 64, "intermediate_size": 128}
    text = common | {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }
    vision = common | {
        "depth": 3,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1],
        "dtype": "float32",
    }
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    image, video, start, end = tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names])
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen3VLForConditionalGeneration(config).float().save_pretrained(folder)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, Qwen's special tokens, and the tiny world's chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from veripo_ray.tinyworld.checkpoint import CHAT_TEMPLATE
    from veripo_ray.tinyworld.vocabulary import END_OF_TEXT, SPECIALS, TURN_END

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate((*SPECIALS, *letters))}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=list(SPECIALS),
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def shipped_checkpoint() -> Path:
    """The trained tiny checkpoint that the package ships."""
    return Path(str(files("veripo_ray.tinyworld"))) / "checkpoint"
