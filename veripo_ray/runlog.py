"""What a run writes about itself: summary.json, metrics.jsonl and TensorBoard events.

All of it can be read while the run goes on and after it was cut short: summary.json is replaced in
one rename, metrics.jsonl grows by whole lines, and a line torn by a crash is dropped.
"""

from __future__ import annotations

import math
import os
import tempfile
import time as clock
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from veripo_ray.errors import DataError

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

    from veripo_ray.tracking import WandbRun

SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"

Natural = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _nan_is_unknown(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


# Figures of an evaluation: None (NaN on the way in) when no response could be decided, never 0.
_Unknown = BeforeValidator(_nan_is_unknown)
MeasuredShare = Annotated[Share | None, _Unknown]
Measured = Annotated[Annotated[float, Field(ge=0)] | None, _Unknown]
Error = Annotated[Measured, Field(description="one standard error of the mean")]


class Entry(BaseModel):
    """A part of the run's record. Further keys are kept, so that newer runs stay readable."""

    model_config = ConfigDict(extra="allow", frozen=True, ser_json_inf_nan="strings")


class Stage(Entry):
    """One evaluation on the held-out questions: at the start and after every phase.

    `seconds`, `samples`, `pairs` and `logprob_gap_max` belong to the phase that led here.
    Shares are of the responses that could be decided.
    """

    iteration: Natural
    phase: Literal["initial", "sft", "grpo", "dpo"]
    accuracy: MeasuredShare
    inconsistency: MeasuredShare = Field(description="thinking contradicts answer")
    mean_think_tokens: Measured
    repetition: MeasuredShare = Field(description="share that fails the repetition check")
    format: MeasuredShare = Field(description="share of well-formed responses")
    seconds: Seconds = 0.0
    evaluation_seconds: Seconds = 0.0
    samples: Natural = Field(0, description="trained rollouts (grpo) or trained pairs (dpo)")
    pairs: Natural = Field(0, description="pairs made from this phase's rollouts, or trained on")
    logprob_gap_max: float | None = Field(None, description="max |learner - rollout worker|, nats")
    correct_and_consistent: MeasuredShare = None
    n: Natural = Field(0, description="responses evaluated")
    errors: Natural = Field(0, description="responses the verifier could not judge, left out")
    accuracy_se: Error = None
    inconsistency_se: Error = None
    correct_and_consistent_se: Error = None
    mean_think_tokens_se: Error = None
    repetition_se: Error = None
    format_se: Error = None

    @property
    def label(self) -> str:
        """How tables, curves and samples.json name this stage: 'initial', 'grpo 1', 'dpo 1', ..."""
        return stage_label(self.iteration, self.phase)


def stage_label(iteration: int, phase: str) -> str:
    return phase if phase == "initial" else f"{phase} {iteration}"


class Cost(Entry):
    """What one kind of phase cost over the run, in wall seconds by part of the work.

    A grpo sample is one trained rollout, with its sampling and rewards; a dpo sample is one trained
    pair, with its verification, pair building and reference log-probabilities (method section 3).
    """

    samples: Natural
    parts: dict[str, Seconds] = Field(description="seconds of 'sampling', 'learning', ...")

    @property
    def per_sample(self) -> float | None:
        return sum(self.parts.values()) / self.samples if self.samples else None


class SecondsPerSample(Entry):
    grpo: Seconds | None = None
    dpo: Seconds | None = None


class BadItem(Entry):
    """A video or question that was left out."""

    name: str
    reason: str


class Judges(Entry):
    """Who decided consistency when pairs were made, and who when stages were evaluated."""

    curation: str
    evaluation: str


class Summary(Entry):
    """summary.json: what the run reached and what it cost."""

    stages: tuple[Stage, ...] = ()
    seconds_per_sample: SecondsPerSample = SecondsPerSample()
    phase_switch_seconds: Seconds | None = Field(
        None, description="from grpo to the first batch of pairs, without the evaluation, mean"
    )
    decodes: Natural = 0
    encodes: Natural = Field(
        0, description="by a frozen tower; one that learns sees clips in its passes: `media_seen`"
    )
    feature_cache_hits: Natural = Field(
        0, description="clips neither decoded nor encoded: their features were on disk"
    )
    videos: Natural = Field(0, description="distinct clips of the questions that were used")
    finished: bool = False
    model: str = ""
    cost: dict[str, Cost] = {}
    judges: Judges | None = None
    bad_items: tuple[BadItem, ...] = Field((), description="the first of those left out")
    left_out: Natural = Field(0, description="questions left out, named or not")
    versions: dict[str, str] = {}
    started: str | None = Field(None, description="ISO 8601, UTC")
    checkpoint: str | None = Field(None, description="the last one, relative to the run's folder")
    restarts: Natural = Field(0, description="times it went back to a checkpoint by itself")


def write_summary(folder: Path, summary: Summary) -> Path:
    """Replaces the run's summary.json in one step."""
    return write_atomic(Path(folder) / SUMMARY, summary.model_dump_json(indent=2) + "\n")


def read_summary(folder: Path) -> Summary | None:
    """The run's summary, None before the first is written; DataError when it is not one."""
    path = Path(folder) / SUMMARY
    if not path.exists():
        return None
    try:
        return Summary.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise _unreadable(path, error) from error


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Writes beside `path` and renames over it: a reader sees the old file or the new one."""
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes it private; a report is for the team
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


class Point(Entry):
    """The metrics of one step, a rollout batch or a batch of pairs: a line of metrics.jsonl."""

    phase: str
    iteration: Natural
    step: Natural = Field(description="within the phase, from 1")
    time: float = Field(description="seconds since 1970")
    values: dict[str, float]


class MetricsLog:
    """metrics.jsonl, a line a step, and the same as TensorBoard events.

    A checkpoint stores `size()`; a resumed run calls `truncate(size)` with it, so that the steps
    it repeats replace the lost ones. TensorBoard's step is the number of the line.
    """

    def __init__(
        self, folder: Path, *, tensorboard: bool = True, also: WandbRun | None = None
    ) -> None:
        """also: who gets every step, too, and is closed with this."""
        self.folder = Path(folder)
        self.path = self.folder / METRICS
        self._tensorboard, self._also = tensorboard, also
        self._writer: SummaryWriter | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")  # noqa: SIM115 (open for as long as the run)
        self.truncate(self.size())

    def append(
        self,
        phase: str,
        iteration: int,
        step: int,
        values: Mapping[str, float],
        *,
        time: float | None = None,
    ) -> None:
        """Adds one step, on disk when this returns. `values` are numbers; NaN and inf survive."""
        when = clock.time() if time is None else time
        point = Point(phase=phase, iteration=iteration, step=step, time=when, values=dict(values))
        self._file.write(point.model_dump_json().encode() + b"\n")
        self._file.flush()
        self._lines += 1
        if self._tensorboard:
            self._write_events(point)
        if self._also:
            self._also.append(point, self._lines)

    def size(self) -> int:
        """Bytes written so far: what a checkpoint remembers."""
        self._file.seek(0, os.SEEK_END)
        return self._file.tell()

    def truncate(self, size: int) -> None:
        """Forgets what was written after the first `size` bytes, and a torn line before that."""
        if size > self.size():
            raise DataError(
                f"{self.path} has {self.size()} bytes, fewer than the {size} of its checkpoint",
                fix="restore metrics.jsonl, or start a new run in another --output",
            )
        self._file.seek(0)
        kept = self._file.read(size)
        kept = kept[: kept.rfind(b"\n") + 1]
        self._file.truncate(len(kept))
        self._lines = kept.count(b"\n")
        self._close_events()

    def close(self) -> None:
        self._close_events()
        self._file.close()
        if self._also:
            self._also.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write_events(self, point: Point) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter  # slow to import, so only when a step is there

            self._writer = SummaryWriter(
                str(self.folder / TENSORBOARD),
                purge_step=self._lines,  # readers drop what an earlier session wrote from here on
                flush_secs=10,
                filename_suffix=f".{clock.time_ns()}",  # two sessions in a second are two files
            )
        for name, value in point.values.items():
            self._writer.add_scalar(f"{point.phase}/{name}", value, self._lines, point.time)

    def _close_events(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def read_metrics(folder: Path) -> list[Point]:
    """Every step in order. A torn last line is left out; any other bad line is a DataError."""
    path = Path(folder) / METRICS
    if not path.exists():
        return []
    whole_lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn
    points = []
    for number, line in enumerate(whole_lines, start=1):
        try:
            points.append(Point.model_validate_json(line))
        except ValidationError as error:
            raise _unreadable(path, error, f" in line {number}") from error
    return points


def _unreadable(path: Path, error: ValidationError, where: str = "") -> DataError:
    first = error.errors()[0]
    at = ".".join(map(str, first["loc"])) or "file"
    return DataError(
        f"{path} cannot be read{where}: {at}: {first['msg']}",
        fix="restore the file from a copy of the run's folder, or move it away to do without it",
    )
