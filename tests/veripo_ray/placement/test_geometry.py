"""A model's size is counted from its config.json as exactly as from its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from veripo_ray import config
from veripo_ray.errors import CheckpointError
from veripo_ray.placement.geometry import Geometry, known_models


def _stored(folder: Path) -> dict[str, int]:
    sizes = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                count = 1
                for side in file.get_slice(name).get_shape():
                    count *= side
                sizes[name] = count
    return sizes


@pytest.mark.parametrize("family", ["tiny_checkpoint", "qwen3_checkpoint"])
def test_parameters_are_those_that_are_stored(family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    sizes = _stored(folder)
    tower = sum(size for name, size in sizes.items() if "visual." in name)
    geometry = Geometry.of(str(folder))
    assert geometry.tower.parameters == tower
    assert geometry.parameters == sum(sizes.values()) - tower


@pytest.mark.parametrize("name", sorted(known_models()))
def test_known_models_have_the_parameters_that_were_published(name: str) -> None:
    geometry = Geometry.of(f"/nowhere/{name}")
    published = known_models()[name]["parameters"]
    assert geometry.parameters + geometry.tower.parameters == published


def test_a_model_that_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="/nowhere/My-VL"):
        Geometry.of("/nowhere/My-VL")


def test_adapters_are_counted_as_they_are_made(tiny_checkpoint: Path) -> None:
    import torch

    from veripo_ray.policy.qwen_vl import QwenVL

    lora = config.Lora(rank=4, targets=("q_proj", "v_proj", "down_proj"))
    policy = QwenVL.load(tiny_checkpoint, dtype=torch.float32, tower=False)
    policy.add_adapters(lora)
    made = sum(weight.numel() for weight in policy.trainable().values())
    assert Geometry.of(str(tiny_checkpoint)).adapters(lora) == made
