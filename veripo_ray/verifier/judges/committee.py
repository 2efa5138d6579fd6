"""Several judges at once, and a rule for what their disagreement means."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal

from veripo_ray.verifier.judges.case import Case, Judge, Judgement, judged

Rule = Literal["unanimous", "majority", "any_no"]
Vote = bool | None  # consistent, inconsistent, or no decision
_VOTES: tuple[Vote, ...] = (True, False, None)


def unanimous(votes: Sequence[Vote]) -> Vote:
    """What all say; no decision where one differs or has none."""
    return votes[0] if len(set(votes)) == 1 else None


def majority(votes: Sequence[Vote]) -> Vote:
    """Of those that decide; a tie is no decision."""
    yes, no = votes.count(True), votes.count(False)
    return None if yes == no else yes > no


def any_no(votes: Sequence[Vote]) -> Vote:
    """One that finds a contradiction suffices; otherwise one that finds none does."""
    return False if False in votes else True if True in votes else None


_RULES: dict[Rule, Callable[[Sequence[Vote]], Vote]] = {
    "unanimous": unanimous,
    "majority": majority,
    "any_no": any_no,
}


class Committee:
    """Asks its members side by side. Where one fails, the rest decide if the outcome is the same
    whatever it would have said; otherwise the case gets an error."""

    name = "committee"

    def __init__(self, members: Sequence[Judge], rule: Rule) -> None:
        self.members, self._rule = tuple(members), rule

    async def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(judged(member, cases)) for member in self.members]
        by_member = (task.result() for task in asked)
        return [self._combined(said) for said in zip(*by_member, strict=True)]

    def _combined(self, said: Sequence[Judgement]) -> Judgement:
        outcomes = self._outcomes(said)
        if len(outcomes) > 1:
            failures = (f"{m.name}: {j.error}" for m, j in self._with(said) if j.error is not None)
            return Judgement.failed("the committee cannot do without " + "; ".join(failures))
        (outcome,) = outcomes
        spans = [j.evidence for j in said if j.consistent is outcome and j.evidence]
        return Judgement(outcome, self._reason(said, outcome), spans[0] if spans else None)

    def _outcomes(self, said: Sequence[Judgement]) -> set[Vote]:
        """What the rule can come to, over all that the members which failed might have said."""
        votes = [_VOTES if j.error is not None else (j.consistent,) for j in said]
        return {_RULES[self._rule](chosen) for chosen in product(*votes)}

    def _with(self, said: Sequence[Judgement]) -> list[tuple[Judge, Judgement]]:
        return list(zip(self.members, said, strict=True))

    def _reason(self, said: Sequence[Judgement], outcome: Vote) -> str:
        each = (f"{m.name}: {_said(j)}" for m, j in self._with(said))
        return f"{_word(outcome)} by the rule {self._rule}; " + "; ".join(each)


def _said(judgement: Judgement) -> str:
    if judgement.error is not None:
        return f"failed ({judgement.error})"
    return f"{_word(judgement.consistent)} ({judgement.reason})"


def _word(vote: Vote) -> str:
    return {True: "consistent", False: "inconsistent", None: "no decision"}[vote]
