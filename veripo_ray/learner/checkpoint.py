"""A learner's checkpoint on disk: `hf` for everyone, `state` to continue exactly.

FOLDER/hf/            Hugging Face layout: weights in the training dtype, tokenizer, processor
FOLDER/adapter/       with LoRA: the adapters alone as peft reads them; in hf/ they are merged in
FOLDER/state/meta.json   what must match to continue
FOLDER/state/rank0.pt    random states of each rank
FOLDER/state/engine/     DeepSpeed's: optimiser and float32 master weights of each rank
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist

from veripo_ray.errors import CheckpointError
from veripo_ray.policy import lora as low_rank
from veripo_ray.weights import to_tensor

if TYPE_CHECKING:
    from veripo_ray import config
    from veripo_ray.learner.engine import Engine
    from veripo_ray.policy.qwen_vl import QwenVL
    from veripo_ray.weights import Snapshot


class Saved(Protocol):
    """What a checkpoint needs to know of a learner."""

    rank: int
    world_size: int
    version: int
    cfg: config.Learner
    policy: QwenVL
    engine: Engine

    def weights(self) -> Snapshot: ...

    def adapters(self) -> Snapshot: ...

    def publish(self, version: int) -> None: ...


FORMAT = 2


def save(learner: Saved, folder: Path) -> None:
    """Write beside `folder`, then rename. Collective. Nodes may share a disk or each have its own,
    which then holds what its ranks have written."""
    fresh = folder.with_name(folder.name + ".writing")
    if learner.rank == 0:
        shutil.rmtree(fresh, ignore_errors=True)
    dist.barrier()
    (fresh / "state").mkdir(parents=True, exist_ok=True)
    weights, adapters = learner.weights(), learner.adapters()
    if learner.rank == 0:
        learner.policy.save(fresh / "hf", _tensors(weights))
        if adapters:
            learner.policy.save_adapters(fresh / low_rank.FOLDER, _tensors(adapters))
        (fresh / "state" / "meta.json").write_text(json.dumps(_meta(learner)))
    torch.save(_random_states(), fresh / "state" / f"rank{learner.rank}.pt")
    learner.engine.save(fresh / "state")
    dist.barrier()
    if learner.rank == 0:
        _replace(fresh, folder)
    dist.barrier()
    if learner.rank:
        mine = fresh.with_name(f"{fresh.name}.{learner.rank}")
        with suppress(FileNotFoundError):  # rank 0, or another rank of this node, has it already
            fresh.rename(mine)
            _replace(mine, folder)
    dist.barrier()


def load(learner: Saved, folder: Path) -> None:
    """Restore what `save` wrote. Collective."""
    meta = _read_meta(folder)
    _refuse_differences(folder, meta, _meta(learner))
    learner.engine.load(folder / "state")
    states = torch.load(folder / "state" / f"rank{learner.rank}.pt", weights_only=True)
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    learner.publish(meta["version"])


def _tensors(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    return {name: to_tensor(array) for name, array in snapshot.items()}


def _meta(learner: Saved) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "ranks": learner.world_size,
        "zero_stage": learner.cfg.zero_stage,
        "dtype": learner.cfg.dtype,
        "train_vision": learner.cfg.train_vision,
        "lora": learner.cfg.lora and learner.cfg.lora.model_dump(mode="json"),
        "version": learner.version,
    }


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "state" / "meta.json"
    if not path.is_file():
        raise CheckpointError(
            f"'{folder}' is not a checkpoint of the learner: it has no state/meta.json",
            fix="give a folder below checkpoints/ of a run",
        )
    return json.loads(path.read_text())


def _refuse_differences(folder: Path, saved: dict[str, Any], own: dict[str, Any]) -> None:
    """Optimiser states are of the weights that learn, and cut by rank and stage, so these must be
    as they were."""
    for name, setting in (
        ("format", "the version of veripo-ray"),
        ("ranks", "learner.ranks"),
        ("zero_stage", "learner.zero_stage"),
        ("dtype", "learner.dtype"),
        ("train_vision", "learner.train_vision"),
        ("lora", "learner.lora"),
    ):
        if saved.get(name) != own[name]:
            raise CheckpointError(
                f"checkpoint '{folder}' was written with {setting} = {saved.get(name)}, "
                f"this run has {own[name]}",
                fix=f"continue with the old value, or start a new run with model={folder / 'hf'}",
            )


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _replace(fresh: Path, folder: Path) -> None:
    """Put `fresh` in the place of `folder`; an older one goes only when the new one is there."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
