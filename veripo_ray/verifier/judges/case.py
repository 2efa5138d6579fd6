"""What a judge of consistency is asked, what it says, and the protocol that all judges share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from veripo_ray.records import Kind


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
