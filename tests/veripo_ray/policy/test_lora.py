"""Adapters compute what the merged matrix computes, and are peft's own for everyone else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open

from veripo_ray import config
from veripo_ray.policy.grouped import response_logprobs
from veripo_ray.policy.lora import changes
from veripo_ray.policy.qwen_vl import QwenVL

LORA = config.Lora(rank=4, alpha=6, targets=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
SCALE = LORA.alpha / LORA.rank


@pytest.fixture
def adapted(policy: QwenVL) -> QwenVL:
    """With adapters of random values: fresh ones change nothing."""
    policy.add_adapters(LORA)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return policy


@pytest.fixture
def groups(group_of, video, image):
    return [group_of([video], (5, 9, 1), seed=1), group_of([image], (7,), 2), group_of([], (4, 3))]


def flat(scores: list[list[torch.Tensor]]) -> torch.Tensor:
    return torch.cat([row for group in scores for row in group])


def test_fresh_adapters_change_nothing(policy, groups):
    before = flat(response_logprobs(policy, groups))
    policy.add_adapters(LORA)
    assert torch.equal(flat(response_logprobs(policy, groups)), before)


def test_adapters_sit_on_every_target_of_the_language_model_and_nowhere_else(checkpoint):
    whole = QwenVL.load(checkpoint, dtype=torch.float32)
    layers = whole.model.config.text_config.num_hidden_layers
    whole.add_adapters(LORA)
    assert len(whole.trainable()) == 2 * len(LORA.targets) * layers
    assert not any("visual" in name for name in whole.trainable())


def test_merged_weights_and_their_gradients_are_those_of_the_adapters(adapted, checkpoint, groups):
    """The gradient of W at W + s B A says that of the adapters: of B it is s G A', of A s B' G."""
    plain = QwenVL.load(checkpoint, dtype=torch.float32, tower=False)
    full = plain.trainable()
    with torch.no_grad():
        for name, weight in adapted.published().items():
            full[name].copy_(weight.value())
    ours, theirs = (flat(response_logprobs(each, groups)) for each in (adapted, plain))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    ours.sum().backward()
    theirs.sum().backward()
    low = adapted.trainable()
    ups = [name for name in low if ".lora_B." in name]
    assert len(ups) * 2 == len(low)
    for name in ups:
        stem = name.split(".lora_B.")[0]
        up, down = low[name], low[name.replace(".lora_B.", ".lora_A.")]
        slope = SCALE * full[f"{stem}.weight"].grad
        for found, expected in ((up.grad, slope @ down.T), (down.grad, up.T @ slope)):
            assert (found - expected).norm() <= 1e-5 * expected.norm() > 0, name


def test_what_is_sent_is_what_vllm_can_load_in_part(adapted, checkpoint):
    """k_proj is no target, but lies in one matrix with q_proj and v_proj; gate with up likewise."""
    with safe_open(checkpoint / "model.safetensors", "np") as file:
        stored = set(file.keys())
    sent = set(adapted.published())
    assert sent == {name for name in stored if changes(name, LORA)}
    modules = {name.split(".")[-2] for name in sent}
    assert modules == {f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")}
    assert {name for name in stored if changes(name, config.Lora(targets=("o_proj",)))} == {
        name for name in stored if ".o_proj." in name
    }


def test_merging_in_bfloat16_rounds_once(checkpoint):
    policy = QwenVL.load(checkpoint, dtype=torch.bfloat16, tower=False)
    policy.add_adapters(LORA)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.normal_(std=0.1)
    for name, weight in policy.published().items():
        assert weight.value().dtype == torch.bfloat16
        if len(weight.parts) == 3:
            base, up, down = (part.double() for part in weight.parts)
            exact = base + SCALE * up @ down
            error = (weight.value().double() - exact).abs()
            assert (error <= 2.0**-8 * exact.abs() + 1e-6).all(), name


def test_the_adapter_alone_is_one_that_peft_loads_and_merges(adapted, checkpoint, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    low = {name: weight.value() for name, weight in adapted.adapters().items()}
    adapted.save_adapters(tmp_path / "adapter", low)
    adapted.save(tmp_path / "hf")
    base, merged = (
        AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
        for folder in (checkpoint, tmp_path / "hf")
    )
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")
    ids = torch.from_numpy(np.arange(20, 32)[None])
    with torch.no_grad():
        ours = merged(input_ids=ids).logits
        torch.testing.assert_close(theirs(input_ids=ids).logits, ours, atol=1e-5, rtol=0)
    for name, weight in theirs.merge_and_unload().named_parameters():
        torch.testing.assert_close(merged.get_parameter(name), weight, atol=1e-6, rtol=0)


def test_saved_merged_and_loaded_again_it_computes_the_same(adapted, groups, tmp_path):
    adapted.save(tmp_path / "hf")
    again = QwenVL.load(tmp_path / "hf", dtype=torch.float32, tower=False)
    with torch.no_grad():
        ours, theirs = (flat(response_logprobs(each, groups)) for each in (adapted, again))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
