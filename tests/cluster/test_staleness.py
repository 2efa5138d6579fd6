"""With staleness 1 the next batch is sampled while the learner steps: never older than one version,
measured after every sync, and safe to stop."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from veripo_ray import journal
from veripo_ray.runstate import Checkpoints, read_state

pytestmark = pytest.mark.timeout(900)
Result = tuple[int, str]
STEPS, BATCH = 5, 4
AHEAD = (
    "schedule=[grpo]",
    "grpo.staleness=1",
    f"grpo.questions={STEPS * BATCH}",
    f"grpo.rollout_batch={BATCH}",
    f"grpo.train_batch={BATCH // 2}",  # several steps a batch: the proximal policy is recorded
    "rollout.workers=2",
    "evaluation.questions=8",
    "grpo.filter_groups=false",
)


def _points(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def stopped_and_resumed(
    recipe_file: Path,
    terminate_when: Callable[..., Result],
    veripo: Callable[..., Result],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, int]:
    """A run that was stopped in the middle and went on; and the steps done when it stopped."""
    output = tmp_path_factory.mktemp("ahead") / "run"
    metrics = output / "metrics.jsonl"
    arguments = ("train", recipe_file, *AHEAD, "--output", output)
    status, said = terminate_when(
        lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2, *arguments
    )
    assert status == 128 + signal.SIGTERM, said
    latest = Checkpoints(output).latest()
    assert latest is not None
    state = read_state(latest)
    assert 2 <= state.step < STEPS
    assert state.cursor == state.step * BATCH  # not of the batch that was sampled ahead
    groups = [group.id for group in journal.read_groups(output)]
    assert len(groups) == state.step * BATCH
    status, said = veripo(*arguments, "--resume")
    assert status == 0, said
    return output, state.step


def test_nothing_is_lost_and_nothing_is_there_twice(stopped_and_resumed: tuple[Path, int]) -> None:
    output, _ = stopped_and_resumed
    groups = list(journal.read_groups(output))
    assert [group.id for group in groups] == [
        f"1.0.{step}.{group.question.id}"
        for step, group in zip(sorted([*range(STEPS)] * BATCH), groups, strict=True)
    ]
    assert len({group.question.id for group in groups}) == STEPS * BATCH
    assert [verdict.group_id for verdict in journal.read_judged(output)] == [g.id for g in groups]
    assert [point["step"] for point in _points(output)] == [1, 2, 3, 4, 5]


def test_rollouts_are_of_the_weights_before_or_of_the_same(
    stopped_and_resumed: tuple[Path, int],
) -> None:
    """What is sampled first, at the start and after a resume, is of the present weights."""
    output, stopped = stopped_and_resumed
    ages = []
    for number, group in enumerate(journal.read_groups(output)):
        (version,) = {rollout.policy_version for rollout in group.rollouts}
        ages.append(number // BATCH - version)
    assert ages == [0 if step in (0, stopped) else 1 for step in range(STEPS) for _ in range(BATCH)]


def test_the_gap_is_that_of_one_version_and_the_weights_are_corrected(
    stopped_and_resumed: tuple[Path, int],
) -> None:
    output, stopped = stopped_and_resumed
    for step, point in enumerate(_points(output)):
        values = point["values"]
        assert 0 < values["logprob_gap_max"] < 1e-4
        drifted = step not in (0, stopped)
        assert (abs(values["importance"] - 1) > 1e-4) == drifted
        assert 0 <= values["capped_fraction"] < 0.2
        assert values["importance"] <= 2.0
