"""The loop, led over a team that answers at once: which questions are asked, and in which order,
does not depend on where a run was stopped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import coordinator as leading
from actors.coordinator import Coordinator
from actors.feed import Task
from actors.team import Team
from veripo_ray import config, journal, logs
from veripo_ray.errors import LostError
from veripo_ray.progress.written import read_status
from veripo_ray.questions import LeftOut, QuestionTable
from veripo_ray.records import Group, Kind, Question, Rollout, Verdict
from veripo_ray.runlog import read_metrics, read_summary
from veripo_ray.verifier.judges import Case, Judge, Judgement, Rules
from veripo_ray.verifier.verify import Item, verify
from veripo_ray.verifier.wire import PlainVerdict

QUESTIONS = 30
RUNS = ("whole", "lossy")
RESPONSE = "<think> f1 red 1 f2 red 2 so {0} </think> <answer> {0} </answer>"


class _Team(Team):
    """Odd questions are answered rightly by every rollout, even ones by the first only."""

    stop_at: int | None = None  # a stop is asked for during this learning step
    lose_at: Iterator[int] = iter(())  # the first team loses a rank in this step, and the next ...

    @classmethod
    async def start(cls, run: config.Run, checkpoint: Path, *, version: int, **_: Any) -> _Team:
        team = cls.__new__(cls)
        team.run, team.steps, team.lost_in = run, 0, next(cls.lose_at, 0)
        team.version, team.measured = version, set()
        cls.coordinator.fake = team
        return team

    async def encode(self, question: Question) -> tuple[int, Any]:
        return 0, ()

    async def live_bytes(self) -> float:
        return 1e9

    def prompts(self, questions: Sequence[Question]) -> list[np.ndarray]:
        return [np.array([1, 2], np.int32) for _ in questions]

    async def film(self, question: Question) -> None:
        return None

    async def counts(self) -> dict[str, int]:
        return dict.fromkeys(("decodes", "encodes", "images", "cache_hits"), 0)

    async def explore(self, tasks: Sequence[Task], prefix: str) -> AsyncIterator[Group]:
        for task in reversed(tasks):  # groups come as they finish
            yield _group(task, prefix, self.run.rollout.group_size, self.version)
            await asyncio.sleep(0)

    async def evaluate(
        self, tasks: Sequence[Task], cfg: config.Evaluation, prefix: str
    ) -> AsyncIterator[Group]:
        for task in tasks:
            yield _group(task, prefix, 1, self.version)

    async def measure_gap(self, task: Task, limit: float) -> float:
        self.measured.add((self.version, bool(task.question.video)))
        return 0.0

    async def gap_of(self, groups: Sequence[Group], features: Any, limit: float) -> float:
        self.measured |= {(self.version, bool(group.question.video)) for group in groups}
        return 0.0

    async def score(self, groups: Sequence[Group], *_: Any) -> dict[str, Any]:
        return {group.id: [] for group in groups}

    async def grpo_step(
        self, groups: Sequence[Group], features: Any, phase: Any, limit: Any, proximal: Any
    ) -> dict[str, float]:
        self.steps += 1
        await asyncio.sleep(0)
        if self.steps == self.lost_in:
            raise LostError("LearnerRank died.\n its node is gone")
        if limit is not None:
            await self.gap_of(groups, features, limit)
        if self.steps == self.stop_at:
            await self.coordinator.stop()
        return {"loss": 0.0}

    async def publish(self, version: int) -> None:
        self.version = version

    async def save(self, folder: Path, uri: str | None = None) -> None:
        (folder / "hf").mkdir(parents=True)

    def close(self) -> None: ...


def _group(task: Task, prefix: str, n: int, version: int) -> Group:
    number = int(task.question.id[1:])
    right = [True] + [bool(number % 2)] * (n - 1)
    texts = [RESPONSE.format(number if good else number + 1000) for good in right]
    rollouts = [
        Rollout(text=t, token_ids=[3], logprobs=[0.0], finish_reason="stop", policy_version=version)
        for t in texts
    ]
    return Group(
        id=f"{prefix}.{task.question.id}",
        question=task.question,
        prompt_ids=task.prompt_ids,
        rollouts=tuple(rollouts),
    )


class _Verifier:
    """The verifier without the way to it."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def ready(self) -> None: ...

    async def averify(self, items: Sequence[Item]) -> list[Verdict]:
        return verify(items, self._judge)

    async def averify_plain(self, items: Sequence[Item]) -> list[PlainVerdict]:
        return [verdict.model_dump() for verdict in verify(items, self._judge)]


class _Contrary(Rules):
    """Finds a contradiction everywhere."""

    def judge_now(self, cases: Sequence[Case]) -> list[Judgement]:
        return [Judgement(False, "as always") for _ in cases]


@pytest.fixture(autouse=True)
def _no_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no actor here that would have to end itself."""
    monkeypatch.setattr(leading, "LINGER_S", 3600.0)


def _settings(output: Path, **phase: Any) -> config.Run:
    plain = {"rollout_batch": 4, "train_batch": 4, "filter_groups": False}
    grpo = config.GrpoPhase(**plain | phase)
    return config.Run(
        model="tinyworld",
        output=output,
        schedule=(grpo, grpo),
        data=config.Data(tinyworld=config.TinyWorldData()),
        rollout=config.Rollout(group_size=2),
        evaluation=config.Evaluation(batch=2),
        checkpoint_every=2,
    )


def _lead(
    output: Path,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    lose_at: Sequence[int] = (),
    videos: Sequence[int] = (),
    examiner: Judge | None = None,
    **phase: Any,
) -> str:
    rows = [
        Question(
            id=f"q{n}",
            text="?",
            kind=Kind.NUMERIC,
            gold=str(n),
            video=f"{n}.mp4" if n in videos else None,
        )
        for n in range(QUESTIONS)
    ]
    train = QuestionTable.write(output / "questions" / "train", rows)
    heldout = QuestionTable.write(output / "questions" / "heldout", rows[:5])

    async def run() -> str:
        leader = Coordinator(
            _settings(output, **phase),
            checkpoint=Path(),
            train=train,
            heldout=heldout,
            left_out=LeftOut(),
            verifier_url="http://nowhere",
            resume=resume,
            team=type("Team", (_Team,), {"stop_at": stop_at, "lose_at": iter(lose_at)}),
        )
        leader.client = _Verifier(Rules())  # type: ignore[assignment]
        leader.examiner = _Verifier(examiner or Rules())  # type: ignore[assignment]
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


def test_a_run_that_loses_a_rank_goes_back_to_its_last_checkpoint_and_writes_nothing_twice(
    tmp_path: Path,
) -> None:
    """Before there is a checkpoint, after one, and in the second phase."""
    assert _lead(tmp_path / "whole") == "finished"
    assert _lead(tmp_path / "lossy", lose_at=(2, 4, 7)) == "finished"
    assert _asked(tmp_path / "lossy") == _asked(tmp_path / "whole")
    judged = [group.group_id for group in journal.read_judged(tmp_path / "lossy")]
    assert judged == _asked(tmp_path / "whole")
    steps = [len((tmp_path / run / "metrics.jsonl").read_text().splitlines()) for run in RUNS]
    assert steps[0] == steps[1]
    summary = read_summary(tmp_path / "lossy")
    assert summary is not None
    assert summary.restarts == 3


def test_a_run_goes_back_no_more_often_than_it_may_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(LostError, match="its node is gone"):
        _lead(tmp_path, lose_at=(2, 2, 2, 2))
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    back = "LearnerRank died. Going back to the last checkpoint, time {} of max_restarts = 3"
    assert told == [back.format(time) for time in (1, 2, 3)]


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


def test_sampling_ahead_asks_the_same_questions_in_the_same_order(tmp_path: Path) -> None:
    """Stopped and resumed too: what had been sampled ahead by then is sampled again."""
    assert _lead(tmp_path / "plain") == "finished"
    ahead = {"staleness": 1, "train_batch": 2}
    assert _lead(tmp_path / "ahead", stop_at=5, **ahead) == "stopped"
    assert _lead(tmp_path / "ahead", resume=True, stop_at=9, **ahead) == "stopped"
    assert _lead(tmp_path / "ahead", resume=True, **ahead) == "finished"
    assert _asked(tmp_path / "ahead") == _asked(tmp_path / "plain")


def test_rollouts_sampled_ahead_are_one_version_old(tmp_path: Path) -> None:
    _lead(tmp_path, staleness=1)
    versions: dict[str, set[int]] = {}
    for group in journal.read_groups(tmp_path):
        step = group.id.rpartition(".")[0]
        versions.setdefault(step, set()).add(group.rollouts[0].policy_version)
    seen = [versions[f"1.0.{step}"] for step in range(7)]
    assert seen == [{0}, {0}, {1}, {2}, {3}, {4}, {5}]  # the learner was at 0, 1, ... 6
    following = [min(versions[step]) for step in versions if step.startswith("2.")]
    assert following == [7, *range(7, 7 + len(following) - 1)]


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("filter_groups", [False, True])  # True: some batches teach nothing
def test_every_sync_is_followed_by_a_measurement(
    tmp_path: Path, staleness: int, filter_groups: bool
) -> None:
    odd = range(1, QUESTIONS, 2)  # every rollout right: not among those that are learned from
    phase = {"rollout_batch": 2, "train_batch": 2, "filter_groups": filter_groups}
    _lead(tmp_path, videos=odd, staleness=staleness, **phase)
    team = _Team.coordinator.fake
    assert team.version > 20
    assert {version for version, _ in team.measured} == set(range(team.version + 1))
    groups = list(journal.read_groups(tmp_path))
    for group in groups:  # on a video, wherever a batch has one
        if group.question.video and not staleness:
            assert (group.rollouts[0].policy_version, True) in team.measured


def test_every_held_out_question_is_asked_at_every_stage(tmp_path: Path) -> None:
    _lead(tmp_path)
    summary = read_summary(tmp_path)
    assert summary is not None
    assert [stage.n for stage in summary.stages] == [5, 5, 5]
    assert [stage.accuracy for stage in summary.stages] == [1.0, 1.0, 1.0]


def test_stages_are_judged_by_the_judge_that_was_held_out_and_rollouts_by_the_one_that_curates(
    tmp_path: Path,
) -> None:
    _lead(tmp_path, examiner=_Contrary())
    summary = read_summary(tmp_path)
    assert summary is not None
    assert {stage.inconsistency for stage in summary.stages} == {1.0}
    judged = [verdict for group in journal.read_judged(tmp_path) for verdict in group.verdicts]
    assert judged
    assert not any(verdict.consistent is False for verdict in judged)


def test_every_line_of_the_log_tells_where_the_run_stood_and_the_status_says_it_ended(
    tmp_path: Path,
) -> None:
    _lead(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / logs.LOG).read_text().splitlines()]
    assert all(line["run"] == tmp_path.name and line["attempt"] == 1 for line in lines)
    steps = [line for line in lines if line["message"].startswith("step")]
    points = read_metrics(tmp_path)
    assert [line["values"] for line in steps] == [point.values for point in points]
    placed = [(line["phase"], line["iteration"], line["step"]) for line in steps]
    assert placed == [(point.phase, point.iteration, point.step) for point in points]
    written = read_status(tmp_path)
    assert written is not None
    assert written.ended
    assert len(written.status.stages) == len(read_summary(tmp_path).stages)  # type: ignore[union-attr]
