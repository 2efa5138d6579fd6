"""The loop, led over a team that answers at once: which questions are asked, and in which order,
does not depend on where a run was stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import coordinator as leading
from actors.coordinator import Coordinator
from actors.feed import Task
from actors.team import Team
from veripo_ray import config, journal
from veripo_ray.questions import LeftOut, QuestionTable
from veripo_ray.records import Group, Kind, Question, Rollout, Verdict
from veripo_ray.runlog import read_summary
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.verify import Item, verify

QUESTIONS = 30
RESPONSE = "<think> f1 red 1 f2 red 2 so {0} </think> <answer> {0} </answer>"


class _Team(Team):
    """Odd questions are answered rightly by every rollout, even ones by the first only."""

    stop_at: int | None = None  # a stop is asked for during this learning step

    @classmethod
    async def start(cls, run: config.Run, checkpoint: Path, **_: Any) -> _Team:
        team = cls.__new__(cls)
        team.run, team.steps = run, 0
        return team

    async def encode(self, question: Question) -> Any:
        return ()

    def prompt(self, question: Question) -> np.ndarray:
        return np.array([1, 2], np.int32)

    async def film(self, question: Question) -> None:
        return None

    async def counts(self) -> dict[str, int]:
        return {"decodes": 0, "encodes": 0, "images": 0}

    async def explore(self, tasks: Sequence[Task], prefix: str) -> AsyncIterator[Group]:
        for task in reversed(tasks):  # groups come as they finish
            yield _group(task, prefix, self.run.rollout.group_size)

    async def evaluate(
        self, tasks: Sequence[Task], cfg: config.Evaluation, prefix: str
    ) -> AsyncIterator[Group]:
        for task in tasks:
            yield _group(task, prefix, 1)

    async def measure_gap(self, task: Task, limit: float) -> float:
        return 0.0

    async def grpo_step(self, *_: Any) -> dict[str, float]:
        self.steps += 1
        if self.steps == self.stop_at:
            await self.coordinator.stop()
        return {"loss": 0.0}

    async def publish(self, version: int) -> None: ...

    async def save(self, folder: Path) -> None:
        (folder / "hf").mkdir(parents=True)

    def close(self) -> None: ...


def _group(task: Task, prefix: str, n: int) -> Group:
    number = int(task.question.id[1:])
    right = [True] + [bool(number % 2)] * (n - 1)
    texts = [RESPONSE.format(number if good else number + 1000) for good in right]
    rollouts = [
        Rollout(text=t, token_ids=[3], logprobs=[0.0], finish_reason="stop", policy_version=0)
        for t in texts
    ]
    return Group(
        id=f"{prefix}.{task.question.id}",
        question=task.question,
        prompt_ids=task.prompt_ids,
        rollouts=tuple(rollouts),
    )


class _Rules:
    """The verifier without the way to it."""

    async def ready(self) -> None: ...

    async def averify(self, items: Sequence[Item]) -> list[Verdict]:
        return verify(items, Rules())


@pytest.fixture(autouse=True)
def _no_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no actor here that would have to end itself."""
    monkeypatch.setattr(leading, "LINGER_S", 3600.0)


def _settings(output: Path) -> config.Run:
    grpo = config.GrpoPhase(rollout_batch=4, train_batch=4, filter_groups=False)
    return config.Run(
        model="tinyworld",
        output=output,
        schedule=(grpo, grpo),
        data=config.Data(tinyworld=config.TinyWorldData()),
        rollout=config.Rollout(group_size=2),
        evaluation=config.Evaluation(batch=2),
        checkpoint_every=2,
    )


def _lead(output: Path, *, resume: bool = False, stop_at: int | None = None) -> str:
    rows = [
        Question(id=f"q{n}", text="?", kind=Kind.NUMERIC, gold=str(n)) for n in range(QUESTIONS)
    ]
    train = QuestionTable.write(output / "questions" / "train", rows)
    heldout = QuestionTable.write(output / "questions" / "heldout", rows[:5])

    async def run() -> str:
        leader = Coordinator(
            _settings(output),
            checkpoint=Path(),
            train=train,
            heldout=heldout,
            left_out=LeftOut(),
            verifier_url="http://nowhere",
            resume=resume,
            team=type("Team", (_Team,), {"stop_at": stop_at}),
        )
        leader.client = _Rules()  # type: ignore[assignment]
        _Team.coordinator = leader
        return await leader.run()

    return asyncio.run(run())


def _asked(output: Path) -> list[str]:
    return [group.id for group in journal.read_groups(output)]


def test_a_run_stopped_in_the_middle_of_a_phase_asks_the_same_in_the_same_order(
    tmp_path: Path,
) -> None:
    assert _lead(tmp_path / "whole") == "finished"
    assert _lead(tmp_path / "cut", stop_at=3) == "stopped"
    assert _lead(tmp_path / "cut", resume=True, stop_at=6) == "stopped"  # in the second phase
    assert _lead(tmp_path / "cut", resume=True) == "finished"
    assert _asked(tmp_path / "cut") == _asked(tmp_path / "whole")


def test_the_second_phase_leaves_out_the_set_share_of_what_the_first_has_solved(
    tmp_path: Path,
) -> None:
    _lead(tmp_path)
    asked: dict[str, list[int]] = {"0": [], "1": []}
    for group in journal.read_groups(tmp_path):
        _, phase, _, question = group.id.split(".")
        asked[phase].append(int(question[1:]))
    assert len(asked["0"]) == 28  # whole batches
    solved = {number for number in asked["0"] if number % 2}
    left = QUESTIONS - round(0.8 * len(solved))
    assert len(asked["1"]) == left // 4 * 4
    assert len(solved & set(asked["1"])) <= len(solved) - round(0.8 * len(solved))
    assert len(set(asked["1"])) == len(asked["1"])


def test_every_held_out_question_is_asked_at_every_stage(tmp_path: Path) -> None:
    _lead(tmp_path)
    summary = read_summary(tmp_path)
    assert summary is not None
    assert [stage.n for stage in summary.stages] == [5, 5, 5]
    assert [stage.accuracy for stage in summary.stages] == [1.0, 1.0, 1.0]
