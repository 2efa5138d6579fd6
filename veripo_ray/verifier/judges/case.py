"""What a judge of consistency is asked, what it says, and the protocol that all judges share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from veripo_ray.errors import VeripoError
from veripo_ray.records import Kind

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Case:
    """One response, without its gold answer: no judge can take right for consistent."""

    question: str
    kind: Kind
    options: tuple[str, ...]
    thinking: str
    answer: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """consistent is None when the judge cannot decide; `error` is set only when it failed.

    evidence: [start, end) in the thinking. probability: that it is consistent, of judges that know.
    """

    consistent: bool | None
    reason: str
    evidence: tuple[int, int] | None = None
    error: str | None = None
    probability: float | None = None

    @classmethod
    def failed(cls, error: str) -> Judgement:
        """No judgement, which is not a judgement against the response."""
        return cls(None, "the judge failed", error=error)


class Judge(Protocol):
    """Does the answer follow from the thinking?"""

    name: str

    async def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """One judgement a case, in order. A case it fails on gets an error, and spoils no other.
        Cancelled, it stops working."""
        ...


async def judged(judge: Judge, cases: Sequence[Case]) -> list[Judgement]:
    """The judge's word, or its failure on every case: an error, never an inconsistency."""
    try:
        judgements = await judge.judge(cases)
    except VeripoError as error:
        problem = error.problem
    except Exception as error:  # a judge is foreign code: its fault is reported
        log.exception("the judge failed")
        problem = f"{type(error).__name__}: {error}"
    else:
        if len(judgements) == len(cases):
            return judgements
        problem = f"the judge gave {len(judgements)} judgements for {len(cases)} cases"
    return [Judgement.failed(problem) for _ in cases]
