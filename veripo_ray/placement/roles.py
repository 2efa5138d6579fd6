"""The processes of a run, and the bundles of resources that they sit in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from veripo_ray import config


class Role(StrEnum):
    """A kind of process. `verifier` and `judge` are replicas that Ray Serve starts."""

    ENCODER = "encoder"
    ROLLOUT = "rollout"
    LEARNER = "learner"
    REFERENCE = "reference"
    VERIFIER = "verifier"
    JUDGE = "judge"


SERVED = (Role.VERIFIER, Role.JUDGE)


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a role, the `number`-th; gpus: several whole ones, or its part of one."""

    role: Role
    number: int
    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Bundle:
    """Processes that lie on one node; those of a bundle of one GPU share that."""

    processes: tuple[Process, ...]
    gpus: float = 0.0

    @property
    def cpus(self) -> float:
        return sum(process.cpus for process in self.processes)

    @property
    def served(self) -> bool:
        """Whether Ray Serve asks for it, and no placement group of the run."""
        return self.processes[0].role in SERVED

    def has(self, role: Role) -> bool:
        return any(process.role == role for process in self.processes)


def on_gpus(run: config.Run) -> bool:
    """Whether processes ask for GPUs: on device=cuda, and where GPUs are rehearsed."""
    return run.device == "cuda" or run.placement.rehearse


def bundles(run: config.Run, *, served: bool = True) -> list[Bundle]:
    """Every bundle of the run, `run.device` being known. served: with those of Ray Serve."""
    found = list(_colocated(run) if run.placement.layout == "colocated" else _separate(run))
    return found + (list(_served(run)) if served else [])


def _separate(run: config.Run) -> Iterator[Bundle]:
    """Each worker and rank has its own; the encoder and the reference, which are busy at other
    times than the tower and the policy need much room, share a GPU."""
    gpu = float(on_gpus(run))
    for number in range(run.rollout.workers):
        wide = gpu * run.rollout.tensor_parallel
        yield Bundle((Process(Role.ROLLOUT, number, 1, wide),), wide)
    for number in range(run.learner.ranks):
        yield Bundle((Process(Role.LEARNER, number, 1, gpu),), gpu)
    if gpu:
        yield _sharing(_encoder(run), *_reference(run))
    else:
        yield from (Bundle((process,)) for process in (_encoder(run), *_reference(run)))


def _colocated(run: config.Run) -> Iterator[Bundle]:
    """Worker i beside rank i; the encoder and the reference beside the last of them."""
    workers, ranks = run.rollout.workers, run.learner.ranks
    slots = max(workers, ranks)
    for number in range(slots):
        yield _sharing(
            *([Process(Role.ROLLOUT, number, 1)] if number < workers else []),
            *([Process(Role.LEARNER, number, 1)] if number < ranks else []),
            *([_encoder(run), *_reference(run)] if number == slots - 1 else []),
        )


def _served(run: config.Run) -> Iterator[Bundle]:
    for number in range(run.verifier.replicas):
        yield Bundle((Process(Role.VERIFIER, number, 1),))
    if run.asks_vllm:
        vllm = run.verifier.judges.vllm
        for number in range(vllm.replicas):
            yield Bundle((Process(Role.JUDGE, number, vllm.cpus, vllm.gpus),), vllm.gpus)


def _encoder(run: config.Run) -> Process:
    return Process(Role.ENCODER, 0, run.features.decoders)


def _reference(run: config.Run) -> list[Process]:
    """With LoRA the learner is its own reference."""
    return [] if run.learner.lora else [Process(Role.REFERENCE, 0, 1)]


def _sharing(*processes: Process) -> Bundle:
    """One GPU in equal parts. Ray counts in ten-thousandths."""
    part = math.floor(10_000 / len(processes)) / 10_000
    return Bundle(tuple(Process(p.role, p.number, p.cpus, part) for p in processes), 1.0)
