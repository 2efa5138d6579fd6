"""A checkpoint continues exactly, is whole or absent, and an ordinary model for everyone else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from veripo_ray import config
from veripo_ray.errors import CheckpointError

GRPO = config.Grpo(lr=1e-3)


def train(learner, batch, steps: int) -> list[float]:
    return [learner.grpo_step(batch.groups, batch.features, GRPO)["loss"] for _ in range(steps)]


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(0, "float32"), (1, "float32"), (2, "float32"), (3, "float32"), (0, "bfloat16")],
)
def test_training_continues_to_the_bit(stage, dtype, learner, batch, tmp_path):
    settings = {"zero_stage": stage, "dtype": dtype}
    original = learner(**settings)
    train(original, batch, 2)
    original.publish(7)
    original.save(tmp_path / "step-2")
    losses = train(original, batch, 2)

    resumed = learner(**settings)
    resumed.load(tmp_path / "step-2")
    assert resumed.version == 7
    assert train(resumed, batch, 2) == losses
    ours, theirs = resumed.weights(), original.weights()
    for name, weight in ours.items():
        np.testing.assert_array_equal(weight, theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def saved(learner, batch, tmp_path_factory):
    trained = learner()
    train(trained, batch, 1)
    folder = tmp_path_factory.mktemp("checkpoints") / "step-1"
    trained.save(folder)
    return folder, trained.weights()


def test_the_saved_model_is_one_that_transformers_loads(saved, tiny_checkpoint):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, weights = saved
    model, report = AutoModelForImageTextToText.from_pretrained(
        folder / "hf", dtype="auto", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.float32
    np.testing.assert_array_equal(model.lm_head.weight.detach(), weights["lm_head.weight"])
    untouched = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, dtype="auto")
    tower = untouched.model.visual.state_dict()
    for name, weight in model.model.visual.state_dict().items():
        torch.testing.assert_close(weight, tower[name], rtol=0, atol=0)
    assert AutoProcessor.from_pretrained(folder / "hf").tokenizer.chat_template


@pytest.mark.parametrize("stage", [0, 3])
def test_a_tower_that_learns_continues_to_the_bit_and_is_saved_with_the_model(
    stage, learner, batch_of_frames, tiny_checkpoint, tmp_path
):
    from transformers import AutoModelForImageTextToText

    settings = {"zero_stage": stage, "train_vision": True}
    original = learner(**settings)
    train(original, batch_of_frames, 1)
    original.save(tmp_path / "step-1")
    weights = original.weights()
    losses = train(original, batch_of_frames, 2)

    resumed = learner(**settings)
    resumed.load(tmp_path / "step-1")
    assert train(resumed, batch_of_frames, 2) == losses
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "step-1" / "hf", dtype="auto")
    before = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, dtype="auto")
    for name, weight in saved.model.visual.named_parameters():
        np.testing.assert_array_equal(weight.detach(), weights[f"visual.{name}"], err_msg=name)
        assert not torch.equal(weight, before.model.visual.get_parameter(name)), name


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"zero_stage": 2}, r"learner\.zero_stage = 0, this run has 2"),
        ({"dtype": "bfloat16"}, r"learner\.dtype = float32, this run has bfloat16"),
        ({"train_vision": True}, r"learner\.train_vision = False, this run has True"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_name(settings, named, saved, learner):
    with pytest.raises(CheckpointError, match=named):
        learner(**settings).load(saved[0])


def test_a_checkpoint_of_other_ranks_is_refused_by_name(saved, learner, tmp_path):
    meta = json.loads((saved[0] / "state" / "meta.json").read_text())
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "meta.json").write_text(json.dumps(meta | {"ranks": 2}))
    with pytest.raises(CheckpointError, match=r"learner\.ranks = 2, this run has 1"):
        learner().load(tmp_path)


def test_a_folder_that_is_no_checkpoint_is_refused(learner, tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint of the learner"):
        learner().load(tmp_path)


def test_a_crash_while_saving_leaves_the_older_checkpoint(learner, batch, tmp_path, monkeypatch):
    trained = learner()
    train(trained, batch, 1)
    trained.save(tmp_path / "latest")
    expected = trained.weights()
    train(trained, batch, 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", _full_disk)
        with pytest.raises(OSError, match="No space left"):
            trained.save(tmp_path / "latest")
    resumed = learner()
    resumed.load(tmp_path / "latest")
    np.testing.assert_array_equal(resumed.weights()["lm_head.weight"], expected["lm_head.weight"])
    trained.save(tmp_path / "latest")  # what the crash left behind is no hindrance
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def _full_disk(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_checkpoint_without_its_optimiser_is_refused(learner, batch, tmp_path):
    trained = learner()
    train(trained, batch, 1)
    trained.save(tmp_path / "broken")
    for path in (tmp_path / "broken" / "state" / "engine").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="no optimiser state"):
        learner().load(tmp_path / "broken")
