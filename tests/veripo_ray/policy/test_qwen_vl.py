"""Loading, naming and saving checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from veripo_ray.errors import CheckpointError, DataError
from veripo_ray.policy.folder import TOWER
from veripo_ray.policy.grouped import response_logprobs
from veripo_ray.policy.qwen_vl import QwenVL, load_tokenizer, read_spec
from veripo_ray.policy.tower import Tower


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A checkpoint that a test may damage."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


def names_in(folder) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as reader:
            tensors |= {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    return tensors


def test_the_spec_is_the_checkpoint_s(spec, checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    numbers = (spec.patch, spec.merge, spec.temporal_patch, spec.feature_size)
    told = {"qwen2_5_vl": (14, 2, 2, 64), "qwen3_vl": (16, 2, 2, 3 * 64)}
    assert numbers == told[spec.family]
    assert spec.placeholders == {
        tokenizer.convert_tokens_to_ids("<|image_pad|>"): "image",
        tokenizer.convert_tokens_to_ids("<|video_pad|>"): "video",
    }
    assert spec.stop_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)


def test_every_special_token_but_the_stop_tokens_is_banned(spec, checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    special = set(tokenizer.all_special_ids) | set(spec.placeholders)
    assert special - set(spec.stop_ids) <= set(spec.banned_ids)
    assert not set(spec.banned_ids) & set(spec.stop_ids)
    assert tokenizer.convert_tokens_to_ids("<think>") not in spec.banned_ids


def test_stop_tokens_include_those_of_the_generation_config(copy):
    path = copy / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, 0]}))
    assert read_spec(copy).stop_ids == (2, 0)
    path.unlink()
    assert read_spec(copy).stop_ids == (2,)


def test_trainable_names_are_those_of_the_saved_checkpoint(policy, checkpoint):
    saved = {name for name in names_in(checkpoint) if not name.startswith(TOWER)}
    assert set(policy.trainable()) == saved


def test_a_frozen_tower_does_not_train(checkpoint):
    whole = QwenVL.load(checkpoint, dtype=torch.float32)
    assert set(whole.trainable()) == set(names_in(checkpoint))
    whole.freeze_tower()
    assert not any(name.startswith(TOWER) for name in whole.trainable())


def test_parts_that_are_left_out_are_not_held(checkpoint, policy, tower):
    sizes = {name: tensor.numel() for name, tensor in names_in(checkpoint).items()}
    vision = sum(n for name, n in sizes.items() if name.startswith(TOWER))
    assert sum(p.numel() for p in policy.model.parameters()) == sum(sizes.values()) - vision
    assert sum(p.numel() for p in tower.policy.model.parameters()) == vision


def test_saving_without_the_tower_still_writes_the_whole_checkpoint(policy, checkpoint, tmp_path):
    with torch.no_grad():
        policy.model.lm_head.weight.add_(1.0)
    policy.save(tmp_path / "saved")
    source, saved = names_in(checkpoint), names_in(tmp_path / "saved")
    assert source.keys() == saved.keys()
    for name, tensor in saved.items():
        expected = source[name] + 1.0 if name == "lm_head.weight" else source[name]
        assert torch.equal(tensor, expected), name
    kept = {path.name for path in checkpoint.iterdir()}
    assert kept == {path.name for path in (tmp_path / "saved").iterdir()}


def test_a_saved_checkpoint_loads_with_plain_transformers(
    policy, checkpoint, tmp_path, group_of, video
):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    policy.save(tmp_path / "saved")
    model, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.float32
    assert AutoProcessor.from_pretrained(tmp_path / "saved").tokenizer.chat_template
    again = QwenVL.load(tmp_path / "saved", dtype=torch.float32, tower=False)
    group = group_of([video], [4])
    assert torch.equal(
        response_logprobs(policy, [group])[0][0], response_logprobs(again, [group])[0][0]
    )


def test_given_weights_are_saved_in_the_model_s_dtype_with_the_config_saying_so(
    checkpoint, tmp_path
):
    half = QwenVL.load(checkpoint, dtype=torch.bfloat16, tower=False)
    gathered = {name: w.detach() + 1 for name, w in half.trainable().items()}
    half.save(tmp_path / "saved", gathered)
    saved = names_in(tmp_path / "saved")
    assert torch.equal(saved["lm_head.weight"], gathered["lm_head.weight"])
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "saved/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("family", ["llama", "qwen3_vl_moe"])
def test_an_unsupported_family_is_named_with_the_supported_ones(copy, family):
    config = json.loads((copy / "config.json").read_text()) | {"model_type": family}
    (copy / "config.json").write_text(json.dumps(config))
    for load in (read_spec, lambda folder: QwenVL.load(folder, dtype=torch.float32)):
        with pytest.raises(CheckpointError, match=f"'{family}'") as raised:
            load(copy)
        assert "qwen2_5_vl or qwen3_vl (a dense model)" in raised.value.fix


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere.*config\.json"):
        QwenVL.load(tmp_path / "nowhere", dtype=torch.float32)


def test_a_checkpoint_without_weights_is_named(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="weights"):
        QwenVL.load(copy, dtype=torch.float32)


def test_a_truncated_weight_file_is_named(copy):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="weights"):
        QwenVL.load(copy, dtype=torch.float32)


def test_missing_weights_are_never_made_up(copy):
    from safetensors.torch import save_file

    tensors = names_in(copy)
    [lost] = [name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight")]
    del tensors[lost]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        QwenVL.load(copy, dtype=torch.float32)


def test_a_checkpoint_without_tokenizer_is_named(copy):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        read_spec(copy)


def test_sliding_window_attention_is_refused(tiny_checkpoint, tmp_path):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    layers = config["text_config"]["num_hidden_layers"]
    config["text_config"] |= {
        "use_sliding_window": True,
        "sliding_window": 8,
        "layer_types": ["sliding_attention"] * layers,
    }
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="sliding"):
        QwenVL.load(copy, dtype=torch.float32)


def test_positions_that_are_not_interleaved_are_refused(qwen3_checkpoint, tmp_path):
    copy = shutil.copytree(qwen3_checkpoint, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    del config["text_config"]["rope_parameters"]["mrope_interleaved"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="interleaved"):
        read_spec(copy)


def test_processors_that_vllm_would_take_for_each_other_are_refused(qwen3_checkpoint, tmp_path):
    copy = shutil.copytree(qwen3_checkpoint, tmp_path / "copy")
    processor = json.loads((copy / "processor_config.json").read_text())
    processor["video_processor"]["image_mean"] = [0.4, 0.5, 0.5]
    (copy / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(CheckpointError, match=r"videos by .*0\.4.* images by"):
        Tower.load(copy, "cpu", torch.float32)


def test_tied_embeddings_are_saved_once(copy, group_of, video, tmp_path):
    from safetensors.torch import save_file

    config = json.loads((copy / "config.json").read_text()) | {"tie_word_embeddings": True}
    config["text_config"]["tie_word_embeddings"] = True
    (copy / "config.json").write_text(json.dumps(config))
    stored = names_in(copy)
    del stored["lm_head.weight"]
    save_file(stored, copy / "model.safetensors", metadata={"format": "pt"})
    tied = QwenVL.load(copy, dtype=torch.float32, tower=False)
    assert "lm_head.weight" not in tied.trainable()
    tied.save(tmp_path / "saved")
    assert "lm_head.weight" not in names_in(tmp_path / "saved")
    again = QwenVL.load(tmp_path / "saved", dtype=torch.float32, tower=False)
    group = group_of([video], [4])
    assert torch.equal(
        response_logprobs(tied, [group])[0][0], response_logprobs(again, [group])[0][0]
    )


def test_features_of_another_tower_are_refused(policy, spec, video):
    wide = replace(video, values=np.zeros((video.rows, spec.feature_size + 64), np.float32))
    with pytest.raises(DataError, match="wide"):
        policy.embed(torch.full((video.rows,), spec.video_pad), [wide])


def test_features_of_another_count_than_the_placeholders_are_refused(policy, spec, video):
    ids = torch.full((video.rows + 1,), spec.video_pad)
    with pytest.raises(DataError, match="placeholders"):
        policy.embed(ids, [video])


def test_gradient_checkpointing_keeps_less_and_changes_no_gradient(policy, group_of, video):
    group = group_of([video], [4, 2])

    def run() -> tuple[int, dict[str, np.ndarray]]:
        kept: list[torch.Tensor] = []
        policy.model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            loss = sum(part.sum() for part in response_logprobs(policy, [group])[0])
        loss.backward()
        return len(kept), {n: p.grad.numpy().copy() for n, p in policy.trainable().items()}

    kept, plain = run()
    policy.enable_gradient_checkpointing()
    kept_less, again = run()
    assert kept_less < kept / 2
    assert all(np.allclose(plain[n], again[n], atol=1e-7) for n in plain)


def test_saving_weights_that_lack_some_is_refused(policy, tmp_path):
    with pytest.raises(ValueError, match="lack"):
        policy.save(tmp_path / "saved", {})


def test_a_folder_laid_out_as_published_checkpoints_are_loads(
    copy, policy, group_of, video, clip_of
):
    """Text settings at the top of config.json in Qwen2.5-VL-7B-Instruct, rope_scaling, weights in
    shards, and a preprocessor_config.json of images, in Qwen3-VL another one of videos."""
    as_published(copy)
    again = QwenVL.load(copy, dtype=torch.float32, tower=False)
    assert again.spec == policy.spec
    group = group_of([video], [4])
    assert torch.equal(
        response_logprobs(policy, [group])[0][0], response_logprobs(again, [group])[0][0]
    )
    features = Tower.load(copy, "cpu", torch.float32).encode_clip(clip_of(8, 1, 2))
    assert np.array_equal(features.values, video.values)


def as_published(folder) -> None:
    from safetensors.torch import save_file

    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    processors = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(processors["image_processor"]))
    if config["model_type"] == "qwen3_vl":
        config["text_config"] = text
        config["vision_config"]["model_type"] = "qwen3_vl"
        video = json.dumps(processors["video_processor"])
        (folder / "video_preprocessor_config.json").write_text(video)
    else:
        rope["type"] = "mrope"
        config = text | config
    (folder / "config.json").write_text(json.dumps(config))
    tensors = names_in(folder)
    (folder / "model.safetensors").unlink()
    shards = [dict(list(tensors.items())[part::2]) for part in range(2)]
    index = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
    weight_map = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weight_map))


def test_a_checkpoint_without_processor_is_named(copy):
    (copy / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match="pixels"):
        Tower.load(copy, "cpu", torch.float32)
