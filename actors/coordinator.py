"""The VerIPO loop, top to bottom: explore with GRPO, verify, align with DPO, evaluate, repeat.

The coordinator is a named async actor. It holds the run's position and references to everything
else, never features or weights, and it outlives the driver that started it.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal, TypeVar

import ray

from actors.agreement import Agreement
from actors.batches import Drawn, RolloutBatch, RolloutBatches
from actors.dealing import Dealt
from actors.feed import Feed, Task
from actors.judging import Judging, judge_groups
from actors.pairing import PairStream
from actors.runbook import RunBook
from actors.team import Team
from veripo_ray import config, curriculum
from veripo_ray.attempt import Attempt
from veripo_ray.errors import DataError, LostError
from veripo_ray.evaluation import StageFigures
from veripo_ray.objectives.advantages import is_informative
from veripo_ray.progress import Status
from veripo_ray.questions import LeftOut, QuestionTable
from veripo_ray.records import Group, Pair, Question
from veripo_ray.report import Sample
from veripo_ray.scoring.rewards import rewarded
from veripo_ray.verifier.client import VerifierClient

T = TypeVar("T")
SHOWN_SAMPLES = 6
MEDIA_COUNTS = ("decodes", "encodes", "cache_hits")
# Python looks for cycles among 700 new objects at a time, which groups and verdicts are by the
# hundred thousand and none of which is in one: it took a quarter of the coordinator's time.
GC_THRESHOLDS = (100_000, 50, 50)
LINGER_S = 60.0  # how long a finished coordinator waits for its driver to read the result


class Stopped(Exception):
    """A stop was asked for; a checkpoint of this moment is on disk."""


class Coordinator:
    """Leads one run. `run` is the whole of it; `status` and `stop` may be called at any time."""

    def __init__(
        self,
        run: config.Run,
        *,
        checkpoint: Path,
        train: QuestionTable,
        heldout: QuestionTable,
        left_out: LeftOut,
        verifier_url: str,
        resume: bool,
        attempt: Attempt | None = None,
        cleanup: Callable[[], None] | None = None,
        team: type[Team] = Team,
    ) -> None:
        """cleanup: what a driver that has gone cannot do any more (end the verifier)."""
        self.settings, self.schedule = run, run.loop
        self.checkpoint, self.train, self.heldout = checkpoint, train, heldout
        self.left_out, self.team_kind = left_out, team
        self.client = VerifierClient(verifier_url, run.verifier.timeout_s)
        other: Literal["heldout"] | None = "heldout" if run.heldout_judge else None
        self.examiner = VerifierClient(verifier_url, run.verifier.timeout_s, judge=other)
        self.stopping, self.restarts = False, 0
        self.over = asyncio.Event()
        self.over.set()
        self.cleanup = cleanup
        self._open(resume=resume, attempt=attempt)

    # --- the loop

    async def run(self) -> str:
        """Train to the end of the schedule: 'finished', or 'stopped' with a checkpoint on disk.
        With an actor that cannot be replaced alone, the run goes back to its last checkpoint."""
        self.over.clear()
        gc.freeze()  # what was imported is no garbage, and need not be looked at again
        gc.set_threshold(*GC_THRESHOLDS)
        async with self.client, self.examiner:  # the same connections for the whole run
            try:
                while True:
                    try:
                        return await self._lead()
                    except LostError as lost:
                        await self._go_back(lost)
            finally:
                await self._close()
                self.over.set()
                asyncio.get_running_loop().call_later(LINGER_S, self._leave)

    async def _lead(self) -> str:
        """From where the book stands to the end of the schedule."""
        try:
            await self._start()
            if not self.state.stages:
                await self._evaluate("initial")
            while self.state.phase_index < len(self.schedule):
                phase = self.schedule[self.state.phase_index]
                self.book.show(phase=phase.phase)
                if isinstance(phase, config.GrpoPhase):
                    await self._explore(phase)
                else:
                    await self._align(phase)
                await self._evaluate(phase.phase)
                self.state.next_phase(self._iteration_after())
                await self._save()
            await self.judging.drain()  # verdicts of a last grpo phase are asked by no pair
            self.book.finish()
            return "finished"
        except Stopped:
            self.book.write(finished=False)
            return "stopped"
        except Exception:
            self.book.attempt.check()  # once overtaken, things fail in many ways for one reason
            raise

    async def _explore(self, phase: config.GrpoPhase) -> None:
        """Group-Slow-Search. Groups are sampled, rewarded and learned from; the verifier judges
        them meanwhile. With staleness 1 the next ones are sampled while the learner steps."""
        if not len(self.state.order):
            self._begin_exploring(phase)
        if phase.kl_coef:
            await self._refit_reference()
        async with aclosing(self._rollout_batches(phase)) as batches:
            while batch := await batches.next():
                groups = await self._rewarded(batch)
                self.book.journals.groups.append(groups)
                await self.judging.submit(groups)
                await self._learn(groups, batch.tasks, phase)
                await batches.settled()
                await self._publish("grpo")
                if phase.staleness:
                    self.book.measured(await self.agreement.measure(batch.tasks))
                self.state.step, self.state.cursor = self.state.step + 1, batch.cursor
                await self._after_step()

    async def _align(self, phase: config.DpoPhase) -> None:
        """Pair-Fast-Align. The reference takes the weights that enter; verified pairs stream
        through it to the learner, which begins with the first shard."""
        entered = time.monotonic()
        await self._refit_reference()
        stream = self._pair_stream(phase)
        learned_before = self.state.step  # more than 0 when the phase is resumed
        async with aclosing(self._pair_batches(stream, phase)) as batches:
            async for batch in batches:
                if learned_before:
                    learned_before -= 1
                    continue
                if self.state.step == 0:
                    self.state.switch_seconds.append(time.monotonic() - entered)
                await self._learn_pairs(batch, phase)
                self._spend_pairing(stream)
                self.state.step += 1
                self.state.pairs = stream.pairs
                await self._after_step()
        stream.require_pairs()
        await self._publish("dpo")

    async def _evaluate(self, phase: str) -> None:
        """Ask the held-out questions; the verifier judges the answers, by a judge that took no part
        in curation where there is one; one group is scored by both sides, so that no stage rests on
        a rollout engine that disagrees with the learner."""
        cfg = self.settings.evaluation
        self.book.begin_evaluation()
        figures, answered, batches = StageFigures(), 0, self._heldout_batches()
        if not self.state.stages:  # the encoder keeps the films of what it decodes first
            await self.feed.tasks(self.heldout.take(batches[0][:SHOWN_SAMPLES]))
        for rows, following in itertools.pairwise((*batches, range(0))):
            tasks = await self.feed.tasks(self.heldout.take(rows))
            self.feed.prefetch(self.heldout.take(following))
            if not tasks:
                continue
            if not answered:
                await self.agreement.measure(tasks)
                if not self.state.stages:
                    await self._begin_samples(task.question for task in tasks[:SHOWN_SAMPLES])
            steps = sum(map(len, batches))
            self.book.show(phase="evaluation", step=answered, steps=steps, message="")
            answers = [g async for g in self.team.evaluate(tasks, cfg, f"eval.{answered}")]
            judged = await judge_groups(self.examiner, answers)
            figures.add(answers, judged)
            self.book.answered(answers, judged)
            answered += len(answers)
            await self._stop_if_asked()
        if not answered:
            raise DataError(
                "no held-out question is usable", fix="see why above; check data.heldout"
            )
        await self._count_media()
        self.book.add_stage(phase, figures.metrics())

    # --- parts of a step

    async def _sample(self, tasks: Sequence[Task], step: int) -> list[Group]:
        """One group a task, in the order of the tasks."""
        prefix = f"{self.state.iteration}.{self.state.phase_index}.{step}"
        sampled = {group.question.id: group async for group in self.team.explore(tasks, prefix)}
        return [sampled[task.question.id] for task in tasks]

    async def _rewarded(self, batch: RolloutBatch) -> list[Group]:
        """The batch's groups with r_a + r_f for every rollout. A group with an answer that could
        not be scored is left out: no reward is ever made up."""
        started = time.monotonic()
        groups = await asyncio.to_thread(rewarded, batch.groups)
        self.state.spend("grpo", "sampling", batch.waited)
        self.state.spend("grpo", "rewards", time.monotonic() - started)
        self.book.sampled(groups, batch.seconds, lost=len(batch.groups) - len(groups))
        for group in groups:
            accuracies = [reward.accuracy for reward in group.rewards]
            row = self.train.row_of(group.question.id)
            self.state.accuracy[row] = sum(accuracies) / len(accuracies)
        return groups

    async def _learn(
        self, groups: Sequence[Group], tasks: Sequence[Task], phase: config.GrpoPhase
    ) -> None:
        """Optimiser steps on one rollout batch. The first is the one that may be on-policy to the
        bit; there the rollout worker's log-probabilities are held against the learner's own."""
        by_question = {task.question.id: task.features for task in tasks}
        features = {group.id: by_question[group.question.id] for group in groups}
        steps = [
            (batch, [g for g in batch if not phase.filter_groups or _informative(g)])
            for _ in range(phase.epochs)
            for batch in _batches(groups, phase.train_batch)
        ]
        first = next((kept for _, kept in steps if kept), [])
        limit = await self.agreement.limit_of_first_step(
            groups, first, features, staleness=phase.staleness
        )
        proximal: Mapping[str, Any] = {}
        if phase.corrects_importance and phase.steps_per_batch > 1:
            proximal = await self.team.score(groups, features, phase)
        for batch, kept in steps:
            if not kept:
                self.book.learned({}, kept=0.0)
                continue
            started = time.monotonic()
            metrics = await self.team.grpo_step(kept, features, phase, limit, proximal)
            self.state.spend("grpo", "learning", time.monotonic() - started)
            self.state.count("grpo", sum(len(group.rollouts) for group in kept))
            if limit is None:  # the policies differ by more than the engines
                metrics = {name: value for name, value in metrics.items() if "gap" not in name}
            self.agreement.note(metrics.get("logprob_gap_max", 0.0))
            self.book.learned(metrics, kept=len(kept) / len(batch))
            limit = None

    async def _learn_pairs(self, batch: Sequence[Pair], phase: config.DpoPhase) -> None:
        features = await self._features_of(batch)
        started = time.monotonic()
        metrics = await self.team.dpo_step(batch, features, phase)
        self.state.spend("dpo", "learning", time.monotonic() - started)
        self.state.count("dpo", len(batch))
        self.book.learned(metrics)

    async def _pair_batches(
        self, stream: PairStream, phase: config.DpoPhase
    ) -> AsyncGenerator[list[Pair]]:
        """Batches over all epochs: the first as the shards come, the others from the journal."""
        batch: list[Pair] = []
        for epoch in range(phase.epochs):
            async with aclosing(stream.shards() if epoch == 0 else stream.again()) as shards:
                async for shard in shards:
                    batch += shard
                    while len(batch) >= phase.batch_pairs:
                        yield batch[: phase.batch_pairs]
                        batch = batch[phase.batch_pairs :]
        if batch:
            yield batch

    # --- the bookkeeping the loop leans on

    def _open(self, *, resume: bool, attempt: Attempt | None) -> None:
        """The book, at the last checkpoint or at the beginning."""
        self.book = RunBook(
            self.settings,
            questions=len(self.train),
            resume=resume,
            attempt=attempt,
            restarts=self.restarts,
        )
        self.state = self.book.state
        self.book.show(message="starting actors")

    async def _go_back(self, lost: LostError) -> None:
        """To the last checkpoint, or to the beginning where there is none yet."""
        if self.stopping or self.restarts == self.settings.max_restarts:
            raise lost
        await self._close()
        self.restarts += 1
        self._open(resume=True, attempt=self.book.attempt)
        self.book.tell(
            f"{lost.problem.splitlines()[0]} Going back to the last checkpoint, time "
            f"{self.restarts} of max_restarts = {self.settings.max_restarts}"
        )

    async def _start(self) -> None:
        """Start the actors, catch up with a checkpoint, open the queue to the verifier."""
        self.team = await self.team_kind.start(
            self.settings,
            self.checkpoint,
            resumed=self.book.resumed_from(),
            reference=self.book.reference_checkpoint(),
            version=self.state.version,
            tell=self.book.tell,
        )
        self.agreement = Agreement(self.team, self.state, self.settings.max_logprob_gap)
        self.feed = Feed(
            self.team.encode,
            self.team.prompts,
            max_bad_share=self.settings.data.max_bad_share,
            total=len(self.train) + len(self.heldout) + self.left_out.count,
            left_out=self.left_out,
            live_bytes=await self.team.live_bytes(),
        )
        self.media_before = {name: getattr(self.state, name) for name in MEDIA_COUNTS}
        self.book.feed = self.feed
        await self.client.ready()
        self.judging = Judging(self.client, self.book.journals.verdicts)
        self.book.judging = self.judging
        for groups in _batches(self.book.unjudged(), 16):
            await self.judging.submit(groups)

    async def _begin_samples(self, questions: Iterable[Question]) -> None:
        """The first held-out questions, with their films, which the report follows."""
        samples = []
        for question in questions:
            clip = await self.team.film(question)
            frames = () if clip is None else (clip.frames, clip.seconds)
            samples.append(Sample.of(question, *frames))
        self.book.begin_samples(samples)

    async def _count_media(self) -> None:
        counts = await self.team.counts()
        for name, before in self.media_before.items():
            setattr(self.state, name, before + counts[name])

    def _begin_exploring(self, phase: config.GrpoPhase) -> None:
        """Choose this phase's questions; its groups begin where the journals end now."""
        state = self.state
        state.order = curriculum.phase_order(
            state.accuracy,
            drop_solved=self.settings.curriculum.drop_solved,
            seed=self.settings.seed + state.phase_index,
        )
        state.journal_start = self.book.journals.sizes()
        if len(state.order) < phase.rollout_batch:
            raise DataError(
                f"{len(state.order)} questions are left for this grpo phase, fewer than "
                f"rollout_batch = {phase.rollout_batch}",
                fix="give more questions, or lower grpo.rollout_batch or curriculum.drop_solved",
            )

    def _rollout_batches(self, phase: config.GrpoPhase) -> RolloutBatches:
        return RolloutBatches(
            lambda step, cursor: self._draw(phase, step, cursor),
            self._sample,
            staleness=phase.staleness,
            step=self.state.step,
            cursor=self.state.cursor,
        )

    async def _draw(self, phase: config.GrpoPhase, step: int, cursor: int) -> Drawn | None:
        """The usable questions of a rollout batch; None when the phase is over."""
        order = self.state.order
        tasks: list[Task] = []
        if step >= self._grpo_steps(phase):
            return None
        while len(tasks) < phase.rollout_batch and cursor < len(order):
            rows = order[cursor:][: phase.rollout_batch - len(tasks)]
            cursor += len(rows)
            tasks += await self.feed.tasks(self.train.take(rows))
        self.feed.prefetch(self.train.take(order[cursor:][: phase.rollout_batch]))
        return Drawn(tasks, cursor) if len(tasks) == phase.rollout_batch else None

    def _heldout_batches(self) -> list[range]:
        """Rows of the held-out questions that an evaluation asks."""
        cfg = self.settings.evaluation
        rows = range(len(self.heldout))[: cfg.questions]
        return [rows[start : start + cfg.batch] for start in range(0, len(rows), cfg.batch)]

    def _grpo_steps(self, phase: config.GrpoPhase) -> int:
        """Whole rollout batches: of `questions`, or of all that the curriculum left."""
        available = min(phase.questions or len(self.state.order), len(self.state.order))
        return available // phase.rollout_batch

    def _pair_stream(self, phase: config.DpoPhase) -> PairStream:
        return PairStream(
            self.settings.output,
            self.state.journal_start,
            self.judging,
            self._attach_reference,
            self.book.journals.pairs,
            phase=phase,
            pairs=self.settings.pairs,
            checks=self.settings.verifier.checks,
            encode=self.team.tokenize,
            seed=self.settings.seed,
        )

    async def _attach_reference(self, pairs: Sequence[Pair]) -> Sequence[Pair]:
        features = await self._features_of(pairs)
        return await self.team.attach_reference(pairs, features)

    async def _features_of(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """References to features by pair id, those that were let go fetched side by side."""
        waits = [self.feed.features(pair.question) for pair in pairs]
        found = await asyncio.gather(*waits)
        return {pair.id: features for pair, features in zip(pairs, found, strict=True)}

    async def _refit_reference(self) -> None:
        """The reference becomes the policy that enters; a resumed phase has it already."""
        if self.state.step == 0:
            latest = self.book.checkpoints.latest()
            self.state.reference = latest.name if latest else None
            await self.team.refit_reference(self.state.version)

    async def _publish(self, kind: str) -> None:
        """Hand the learner's weights to every rollout worker, stamped with the next version."""
        started = time.monotonic()
        self.state.version += 1
        await self.team.publish(self.state.version)
        self.state.spend(kind, "weight sync", time.monotonic() - started)

    def _spend_pairing(self, stream: PairStream) -> None:
        """What a pair cost before the learner saw it: its verdicts, building, reference scores."""
        for part, seconds in stream.take_seconds().items():
            self.state.spend("dpo", part, seconds)
        self.state.spend("dpo", "verification", self.judging.busy.take())

    def _iteration_after(self) -> int:
        """An iteration is one grpo and the dpo after it."""
        following = self.schedule[self.state.phase_index + 1 :]
        begins = bool(following) and following[0].phase == "grpo"
        return self.state.iteration + begins

    async def _after_step(self) -> None:
        """Log, checkpoint every k steps, and honour a stop."""
        self.book.step_done()
        if not self.stopping and self.state.step % self.settings.checkpoint_every == 0:
            await self._save()
        await self._stop_if_asked()

    async def _stop_if_asked(self) -> None:
        if self.stopping:
            self.book.show(message="writing a checkpoint before stopping")
            await self._save()
            raise Stopped

    async def _save(self) -> None:
        writing = self.book.begin_checkpoint()
        await self.team.save(writing, self.book.uri_of(writing))
        await self._count_media()
        await self.book.commit(writing)

    async def _close(self) -> None:
        self.book.close()
        if judging := getattr(self, "judging", None):
            await judging.close()
        if team := getattr(self, "team", None):
            team.close()

    def _leave(self) -> None:
        """End this detached actor when no driver has come for the result."""
        if self.cleanup:
            self.cleanup()
        ray.kill(ray.get_runtime_context().current_actor)

    # --- what others may ask

    async def status(self) -> Status:
        return self.book.status()

    async def deal(self, hand: str) -> list[Dealt]:
        """The next questions of a sampling, for the rollout worker that has room for them."""
        return self.team.deal(hand)

    async def stop(self) -> None:
        """Finish the step in progress, write a checkpoint, and end `run` with 'stopped'."""
        self.stopping = True

    async def retire(self) -> None:
        """As `stop`, then leave at once: for the attempt that goes on with this run."""
        await self.stop()
        await self.over.wait()
        self._leave()


def _informative(group: Group) -> bool:
    return is_informative([reward.accuracy for reward in group.rewards])


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
