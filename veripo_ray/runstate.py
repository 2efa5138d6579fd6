"""Where a run stands: what a checkpoint records beside the weights, and how the newest is found.

A checkpoint is `checkpoints/<number>/` with `hf/` (weights that transformers and vLLM load),
`state/` (optimiser and RNG of every rank), and of this module `run.json` and `questions.npz`, which
has what is known of every question. The folder gets its final name last, so a checkpoint either is
whole or is not there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from veripo_ray.errors import CheckpointError
from veripo_ray.runlog import Cost, Stage

QUESTIONS = "questions.npz"


class RunState(BaseModel):
    """The run's position. A phase is over when its stage (evaluation) is in `stages`. Questions
    are known by their rows in the run's table: 8 bytes each, however many there are."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    # where
    phase_index: int = 0
    iteration: int = 1
    step: int = Field(0, description="rollout batches (grpo) or optimiser steps (dpo) done")
    order: np.ndarray = Field(
        default_factory=lambda: np.zeros(0, np.int32),
        exclude=True,
        description="rows [M] int32 of this grpo phase's questions, in the order they are asked",
    )
    cursor: int = Field(0, description="how many of `order` are used up")
    version: int = Field(0, description="policy version: weight updates published so far")
    # what the phase has cost and seen
    seconds: float = Field(0.0, description="wall time of the phase, without evaluation")
    samples: int = 0
    pairs: int = 0
    logprob_gap_max: float = 0.0
    accuracy: np.ndarray = Field(
        default_factory=lambda: np.zeros(0, np.float32),
        exclude=True,
        description="[N] float32: a question's mean r_a when it was last asked, NaN before",
    )
    # what the run has
    stages: list[Stage] = []
    cost: dict[str, Cost] = {}
    switch_seconds: list[float] = []
    decodes: int = 0
    encodes: int = 0
    cache_hits: int = 0
    reference: str | None = Field(None, description="checkpoint that entered the dpo phase")
    # where its files end
    journal_start: dict[str, int] = Field({}, description="journal sizes when the last grpo began")
    journal_sizes: dict[str, int] = {}
    metrics_size: int = 0

    def spend(self, phase: str, part: str, seconds: float) -> None:
        """Count wall seconds of one part of the work. `seconds`, the phase's, go by laps."""
        cost = self.cost.get(phase) or Cost(samples=0, parts={})
        parts = {**cost.parts, part: cost.parts.get(part, 0.0) + seconds}
        self.cost[phase] = Cost(samples=cost.samples, parts=parts)

    def count(self, phase: str, samples: int) -> None:
        """Count samples trained on."""
        cost = self.cost.get(phase) or Cost(samples=0, parts={})
        self.cost[phase] = Cost(samples=cost.samples + samples, parts=cost.parts)
        self.samples += samples

    def next_phase(self, iteration: int) -> None:
        self.phase_index += 1
        self.iteration = iteration
        self.step = self.cursor = self.samples = self.pairs = 0
        self.seconds = self.logprob_gap_max = 0.0
        self.order = np.zeros(0, np.int32)

    @classmethod
    def beginning(cls, questions: int) -> RunState:
        """Of a run of so many questions, none asked yet."""
        return cls(accuracy=np.full(questions, np.nan, np.float32))


class Checkpoints:
    """The checkpoints folder of a run."""

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder / "checkpoints"

    def begin(self, attempt: int = 1) -> Path:
        """Where to write the next checkpoint: a folder that does not exist yet, and that no other
        attempt at the run writes to."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob("*.writing"):
            shutil.rmtree(stale, ignore_errors=True)  # who wrote it may not have ended yet
        numbers = [int(path.name) for path in self.whole()]
        return self.folder / f"{max(numbers, default=0) + 1:06d}.{attempt}.writing"

    def commit(self, writing: Path, state: RunState, keep: int) -> Path:
        """Give the folder its final name, point `latest` at it, and drop what is too old."""
        writing.mkdir(exist_ok=True)  # the ranks may all be on other nodes
        np.savez(writing / QUESTIONS, order=state.order, accuracy=state.accuracy)
        (writing / "run.json").write_text(state.model_dump_json(indent=1))
        final = writing.with_name(writing.name.split(".")[0])
        writing.rename(final)
        self._point_latest(final)
        protected = {final.name, state.reference}
        for old in self.whole()[:-keep]:
            if old.name not in protected:
                shutil.rmtree(old)
        return final

    def latest(self) -> Path | None:
        whole = self.whole()
        return whole[-1] if whole else None

    def whole(self) -> list[Path]:
        """Every checkpoint, the newest last."""
        return sorted(p for p in self.folder.glob("[0-9]*") if (p / "run.json").is_file())

    def _point_latest(self, final: Path) -> None:
        link = self.folder / "latest.new"
        link.unlink(missing_ok=True)
        link.symlink_to(final.name)
        os.replace(link, self.folder / "latest")


def read_state(checkpoint: Path) -> RunState:
    """Raises CheckpointError when a file of the position is missing or damaged."""
    try:
        state = RunState.model_validate_json((checkpoint / "run.json").read_text())
        with np.load(checkpoint / QUESTIONS, allow_pickle=False) as rows:
            state.order, state.accuracy = rows["order"], rows["accuracy"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise CheckpointError(
            f"the position in {checkpoint} (run.json, {QUESTIONS}) cannot be read: {error}",
            fix="delete this checkpoint's folder to resume from the one before it",
        ) from error
    return state
