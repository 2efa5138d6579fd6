"""The seed of the shipped checkpoint: random weights with a vision tower that has learned to see.

    python -m veripo_ray.tinyworld.sight FOLDER

Two linear heads on the tower's features tell the colour in each half of the picture (or none) and
the step that the film counter shows. A minute later they are thrown away and the tower is frozen:
`veripo train tinyworld_sft model=FOLDER` goes on from there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from veripo_ray import config
from veripo_ray.tinyworld import render, world
from veripo_ray.tinyworld.checkpoint import HIDDEN, build_checkpoint
from veripo_ray.tinyworld.scene import Scene
from veripo_ray.tinyworld.vocabulary import COLOURS, SIDES, STEPS

if TYPE_CHECKING:
    import torch

    from veripo_ray.policy.qwen_vl import QwenVL
    from veripo_ray.video.decode import Clip

VIDEO = config.Video(fps=2.0, min_pixels=784)  # two frames a step: one temporal patch
BATCH, LR = 32, 3e-3


def build_seed(folder: Path, *, seed: int = 0, clips: int = 512, steps: int = 80) -> float:
    """Write a checkpoint whose tower sees. Returns the share of colours and steps told rightly in
    the last batch."""
    import torch

    from veripo_ray.policy.qwen_vl import QwenVL

    scenes = list(islice(world.scenes(seed, held_out=False), clips))
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as blind:
        policy = QwenVL.load(build_checkpoint(blind, seed), dtype=torch.float32)
        right = _teach(policy, _pixels(policy, film(scenes)), labels(scenes), steps)
        policy.save(folder)
    return right


def film(scenes: Sequence[Scene]) -> list[Clip]:
    """The scenes as a run sees them: written as mp4, compression noise and all, and decoded."""
    from veripo_ray.video.decode import Decoder

    with tempfile.TemporaryDirectory() as folder, Decoder(VIDEO) as decoder:
        file = Path(folder) / "clip.mp4"
        clips = []
        for scene in scenes:
            render.write_mp4(file, scene)
            clips.append(decoder.clip(file))
        return clips


def labels(scenes: Sequence[Scene]) -> torch.Tensor:
    """int64 [scenes, STEPS, 2]: the colour in each half from 1, 0 where the shape is not."""
    import torch

    return torch.tensor(
        [
            [[(COLOURS.index(c) + 1) * (s == side) for side in SIDES] for c, s in steps]
            for steps in (zip(scene.colours, scene.sides, strict=True) for scene in scenes)
        ]
    )


def _pixels(policy: QwenVL, clips: Sequence[Clip]) -> torch.Tensor:
    """[clips, patches, values] float32."""
    from veripo_ray.policy.media import Frames

    assert policy.pixels is not None
    patches, _ = policy.pixels.patches([Frames.of_clip(clip, policy.spec) for clip in clips])
    return patches.unflatten(0, (len(clips), -1))


def _teach(
    policy: QwenVL, pixels_CNP: torch.Tensor, colours_CS2: torch.Tensor, steps: int
) -> float:
    import torch

    heads = torch.nn.Linear(HIDDEN, len(COLOURS) + 1 + STEPS)
    tower = policy.model.model.visual
    optimiser = torch.optim.AdamW([*tower.parameters(), *heads.parameters()], lr=LR, weight_decay=0)
    right = 0.0
    for step in range(steps):
        chosen = torch.randint(len(pixels_CNP), (BATCH,))
        scores = heads(_features(policy, pixels_CNP[chosen]))
        loss, right = _told(scores, colours_CS2[chosen])
        for group in optimiser.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 10)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimiser.step()
    return right


def _features(policy: QwenVL, pixels_BNP: torch.Tensor) -> torch.Tensor:
    """[B, STEPS, 2, hidden]."""
    import torch

    grid = (STEPS, render.HEIGHT // 14, render.WIDTH // 14)
    grids = torch.tensor([grid] * len(pixels_BNP))
    rows = policy.encode(pixels_BNP.flatten(0, 1), grids)
    return torch.stack(list(rows)).unflatten(1, (STEPS, len(SIDES)))


def _told(scores_BS2K: torch.Tensor, colours_BS2: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Loss of both heads, and the share of rightly told places."""
    import torch
    from torch.nn.functional import cross_entropy

    colour, counter = scores_BS2K.split([len(COLOURS) + 1, STEPS], dim=-1)
    steps = torch.arange(STEPS)[None, :, None].expand(colours_BS2.shape)
    loss = cross_entropy(colour.flatten(0, 2), colours_BS2.flatten())
    loss = loss + cross_entropy(counter.flatten(0, 2), steps.flatten())
    right = (colour.argmax(-1) == colours_BS2) & (counter.argmax(-1) == steps)
    return loss, float(right.float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    build_seed(chosen.folder, seed=chosen.seed)


if __name__ == "__main__":
    main()
