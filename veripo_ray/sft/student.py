"""One rank of an sft phase, from its present step to the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Self

from veripo_ray import config
from veripo_ray.learner.objectives import Stats
from veripo_ray.records import Question
from veripo_ray.sft.demonstrations import (
    batches,
    demonstration,
    learning_rate,
    step_folder,
    steps_of,
)
from veripo_ray.sft.imitation import Imitator
from veripo_ray.sft.media import MediaSource

Keep = Callable[[Stats, Path | None], None]


class Student:
    """One rank of an sft phase: a learner that imitates, and the media that it looks at."""

    def __init__(
        self,
        run: config.Run,
        phase: config.SftPhase,
        checkpoint: Path,
        *,
        device: str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.run, self.phase = run, phase
        self.learner = Imitator(
            checkpoint,
            run.learner,
            device=device,
            seed=run.seed,
            rank=rank,
            world_size=world_size,
        )
        self.media = MediaSource(
            checkpoint,
            run.video,
            device=device,
            dtype=self.learner.policy.dtype,
            frames=run.learner.train_vision,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.media.close()

    def imitate(
        self,
        questions: Sequence[Question],
        folder: Path,
        keep: Keep,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train from the learner's present step to the last, or until some rank's `stop()`.

        Every `checkpoint_every` steps and at the end the learner is saved in `folder`/step-N;
        `keep` gets each step's metrics and that folder (None at the steps between). A learner that
        has loaded such a checkpoint goes on exactly: its version is the step, which alone decides
        order and rate.
        """
        steps = steps_of(self.phase, len(questions))
        plan = islice(batches(questions, self.phase, self.run.seed), self.learner.version, steps)
        for step, batch in enumerate(plan, start=self.learner.version):
            stats = self._step(batch, learning_rate(self.phase, step, steps))
            self.learner.publish(step + 1)
            stopping = self.learner.any_rank(stop())
            saved = None
            if stopping or (step + 1) % self.phase.checkpoint_every == 0 or step + 1 == steps:
                saved = folder / step_folder(step + 1)
                self.learner.save(saved)
            keep(stats | {"step": step + 1, "steps": steps}, saved)
            if stopping:
                return

    def _step(self, batch: Sequence[Question], lr: float) -> Stats:
        seen = {question.id: self.media.of(question) for question in batch}
        template, policy = self.run.prompt.template, self.learner.policy
        examples = [
            demonstration(policy, question, seen[question.id], template, self.phase)
            for question in batch
        ]
        return self.learner.sft_step(examples, seen, lr)
