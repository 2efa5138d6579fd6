"""Whether rollout workers and learner agree: no weight sync goes without a measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from actors.feed import Task
from veripo_ray.records import Group, Question
from veripo_ray.runstate import RunState

if TYPE_CHECKING:
    from actors.team import Team

T = TypeVar("T")


class Agreement:
    """Holds the log-probabilities that both sides give to the same tokens, under one version of the
    weights, against each other. What differs by more than `limit` ends the run (PrecisionError);
    the largest difference of a phase is its state's `logprob_gap_max`."""

    def __init__(self, team: Team, state: RunState, limit: float) -> None:
        self._team, self._state, self._limit = team, state, limit

    async def measure(self, tasks: Sequence[Task]) -> float:
        """Sample a group for it, of the first of these questions that has a video, if one has."""
        task = _with_video(tasks, key=lambda task: task.question)
        gap = await self._team.measure_gap(task, self._limit)
        self.note(gap)
        return gap

    async def limit_of_first_step(
        self,
        groups: Sequence[Group],
        first: Sequence[Group],
        features: Mapping[str, Any],
        *,
        staleness: int,
    ) -> float | None:
        """The limit that the learner is to check in its first step on `groups`, which takes `first`
        of them.

        None for rollouts of older weights: their gap was measured when these came. When the step
        will see no video, a group that has one is scored before it.
        """
        versions = [rollout.policy_version for group in groups for rollout in group.rollouts]
        age = self._state.version - min(versions, default=self._state.version)
        assert 0 <= age <= staleness, f"rollouts are {age} versions old"
        if age:
            return None
        witness = _with_video(groups, key=lambda group: group.question) if groups else None
        if witness and bool(witness.question.video) not in {bool(g.question.video) for g in first}:
            self.note(await self._team.gap_of([witness], features, self._limit))
        return self._limit

    def note(self, gap: float) -> None:
        self._state.logprob_gap_max = max(self._state.logprob_gap_max, gap)


def _with_video(items: Sequence[T], key: Callable[[T], Question]) -> T:
    """The first of these whose question has a video; the first of all when none has."""
    return next((item for item in items if key(item).video), items[0])
