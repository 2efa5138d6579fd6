"""The seed of the shipped checkpoint: a tower that sees."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file

from veripo_ray.tinyworld import world
from veripo_ray.tinyworld.checkpoint import build_checkpoint
from veripo_ray.tinyworld.sight import build_seed, labels


def test_labels_name_the_colour_where_the_shape_is() -> None:
    scene = next(world.scenes(0, held_out=False))
    told = labels([scene])[0]
    for step, (colour, side) in enumerate(zip(scene.colours, scene.sides, strict=True)):
        there = ["left", "right"].index(side)
        assert told[step, 1 - there] == 0
        assert ["red", "green", "blue", "yellow"][told[step, there] - 1] == colour


def test_the_tower_learns_to_see_in_a_few_steps_and_nothing_else_changes(tmp_path: Path) -> None:
    right = build_seed(tmp_path / "seed", seed=5, clips=48, steps=45)
    assert right > 0.9
    before = load_file(build_checkpoint(tmp_path / "blind", 5) / "model.safetensors")
    after = load_file(tmp_path / "seed" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("visual.") for name in changed)


def test_scenes_differ_in_looks() -> None:
    scenes = list(islice(world.scenes(0, held_out=False), 50))
    assert len({scene.shape for scene in scenes}) == 3
    assert len({scene.shade for scene in scenes}) > 10
