"""Seconds of a weight sync, against a plain copy of the same bytes over the same way.

    python benchmarks/weights.py --json weights.json

The sync is the product's: a learner rank, WeightSync, and rollout workers with vLLM, each an actor
in a process of its own; from the version's name to caches that are reset. The plain copy is what
no sync can do without: the rank's process puts as many bytes, as one array that is there already,
into Ray's object store, and every worker's process copies it into memory that is there already. It
knows of no names, layers or layouts. On GPUs (--device cuda) it is one copy within the GPU. Both
take turns.

Beside them, each on its own: `send` (the rank puts all buckets, nobody takes them), `load` (workers
take buckets that lie ready), `finish` (caches dropped, the new weights in use), and `memcpy`, one
copy of the bytes within a process. All are medians; ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import ray
from _common import Timing, alternate, median, ratios, write
from _trunk import write_checkpoint

from actors.learner import LearnerRank
from actors.rollout import RolloutWorker
from actors.syncing import WeightSync
from cluster.preflight import model_folder
from veripo_ray import config
from veripo_ray.tinyworld.checkpoint import build_processor, build_tokenizer
from veripo_ray.weights import Manifest

SHIPPED = "tinyworld"
MODELS = (SHIPPED, "cpu", "mid")
ON_GPUS = {"nccl": (1.0, 1.0), "cuda_ipc": (0.5, 0.5), "object_store": (0.5, 0.5)}
START_S = 600.0
Side = Callable[[], Any]


class Actors:
    """One learner rank and rollout workers on a checkpoint, and what is timed of them."""

    def __init__(self, folder: Path, workers: int, transport: Any, args: Any) -> None:
        device, weights = args.device, config.Weights(bucket_mb=args.bucket_mb)
        gpus = ON_GPUS[transport] if device == "cuda" else (0.0, 0.0)
        rollout = config.Rollout(
            dtype=args.dtype, max_model_len=256, max_num_seqs=8, gpu_memory_utilization=0.3
        )
        self.rank = (
            ray.remote(LearnerRank)
            .options(num_cpus=1, num_gpus=gpus[0])
            .remote(str(folder), config.Learner(dtype=args.dtype), device=device)
        )
        self.workers = [
            ray.remote(RolloutWorker)
            .options(num_cpus=1, num_gpus=gpus[1])
            .remote(str(folder), rollout, device=device, transport=transport)
            for _ in range(workers)
        ]
        address = ray.get(self.rank.address.remote(), timeout=START_S)
        starts = [self.rank.join.remote(address), *(w.ping.remote() for w in self.workers)]
        ray.get(starts, timeout=START_S)
        self._sync, self._loop = WeightSync(weights, transport), asyncio.new_event_loop()
        self._bucket_bytes, self._version = weights.bucket_bytes, 0
        self.manifest: Manifest = ray.get(self.rank.manifest.remote(0))
        self.bytes = self._size()
        self._buckets = [ray.put(bucket) for bucket in map(ray.get, self._stream())]
        for actor in (self.rank, *self.workers):
            ray.get(actor.__ray_call__.remote(_make_room, self.bytes, device))

    def _size(self) -> int:
        width = 2 if self.manifest.dtype == "bfloat16" else 4
        return width * sum(int(np.prod(shape)) for shape in self.manifest.shapes.values())

    def _stream(self) -> Any:
        return self.rank.weights.options(num_returns="streaming").remote(self._bucket_bytes)

    def sync(self) -> None:
        self._version += 1
        named = {f"rollout worker {n}": worker for n, worker in enumerate(self.workers)}
        ranks = {"learner rank 0": self.rank}
        self._loop.run_until_complete(self._sync.publish(self._version, ranks, named))

    def plain_copy(self) -> None:
        there = self.rank.__ray_call__.remote(_room)
        ray.get([worker.__ray_call__.remote(_copy, there) for worker in self.workers])

    def plain_copy_within_a_gpu(self) -> None:
        ray.get(self.rank.__ray_call__.remote(_copy_on_gpu))

    def send(self) -> None:
        for bucket in self._stream():
            ray.wait([bucket], fetch_local=False)

    def load(self) -> None:
        for worker in self.workers:
            worker.begin_update.remote(self.manifest)
        ray.get([worker.take.remote(b) for b in self._buckets for worker in self.workers])

    def finish(self) -> None:
        ray.get([worker.finish_update.remote() for worker in self.workers])

    def memcpy(self) -> None:
        ray.get(self.rank.__ray_call__.remote(_copy_here))

    def close(self) -> None:
        self._loop.close()
        for actor in (self.rank, *self.workers):
            ray.kill(actor)


# --- in the actors' processes


def _make_room(actor: Any, size: int, device: str) -> None:
    import torch

    actor.room = [np.ones(size, np.uint8) for _ in range(2)]
    if device == "cuda":
        actor.gpu_room = [torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2)]


def _room(actor: Any) -> np.ndarray:
    return actor.room[0]


def _copy(actor: Any, array: np.ndarray) -> None:
    np.copyto(actor.room[0], array)


def _copy_here(actor: Any) -> None:
    np.copyto(actor.room[1], actor.room[0])


def _copy_on_gpu(actor: Any) -> None:
    import torch

    actor.gpu_room[1].copy_(actor.gpu_room[0])
    torch.cuda.synchronize()


# --- the benchmark


def main() -> None:
    args = _arguments()
    transports = list(ON_GPUS) if args.device == "cuda" else ["object_store"]
    rows = []
    with tempfile.TemporaryDirectory() as scratch, _ray(args.device):
        for model in args.models:
            folder = _checkpoint(model, Path(scratch), args.dtype)
            for transport in transports:
                if transport == "nccl" and ray.cluster_resources().get("GPU", 0) < 2:
                    print("nccl: skipped, it needs two GPUs")
                    continue
                for workers in args.workers:
                    rows.append(_measure(model, folder, workers, transport, args))
                    _print(rows[-1])
    write(args.json, "weights", rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bucket-mb", type=float, default=config.Weights().bucket_mb)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


@contextmanager
def _ray(device: str) -> Iterator[None]:
    gpus = None if device == "cuda" else 0
    ray.init(
        address="local", num_cpus=8, num_gpus=gpus, include_dashboard=False, log_to_driver=False,
        object_store_memory=2 << 30, logging_level="error",
    )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


def _checkpoint(model: str, scratch: Path, dtype: str) -> Path:
    import torch

    if model == SHIPPED:
        return model_folder(SHIPPED)
    build_processor(build_tokenizer()).save_pretrained(scratch / model)
    return write_checkpoint(scratch / model, model, getattr(torch, dtype), "cpu")


def _measure(
    model: str, folder: Path, workers: int, transport: str, args: Any
) -> dict[str, str | int | float]:
    actors = Actors(folder, workers, transport, args)
    within = args.device == "cuda" and transport != "object_store"
    sides: dict[str, Side] = {
        "sync": actors.sync,
        "copy": actors.plain_copy_within_a_gpu if within else actors.plain_copy,
        "send": actors.send,
        "load": actors.load,
        "finish": actors.finish,
        "memcpy": actors.memcpy,
    }
    try:
        turns = alternate(sides, dict.fromkeys(sides, args.rounds))
    finally:
        actors.close()
    return {
        "model": model,
        "transport": transport,
        "workers": workers,
        "mb": round(actors.bytes / 1e6, 1),
        "weights": len(actors.manifest.shapes),
        **{f"{name}_ms": round(1e3 * median(turn), 1) for name, turn in turns.items()},
        "ratio": _ratio(turns),
    }


def _ratio(turns: dict[str, list[Timing]]) -> float:
    return round(statistics.median(ratios(turns["sync"], turns["copy"])), 2)


def _print(row: dict[str, Any]) -> None:
    figures = "  ".join(f"{name[:-3]} {ms:g}" for name, ms in row.items() if name.endswith("_ms"))
    print(
        f"{row['model']} ({row['mb']} MB, {row['weights']} weights), {row['transport']} to "
        f"{row['workers']} worker(s), ms: {figures}; sync / copy {row['ratio']:g}",
        flush=True,
    )


if __name__ == "__main__":
    main()
