"""How a judge asks a language model: prompts in, an answer or an error each out.

Siblings: `openai.OpenAi` over HTTP, and `deployments.judge.ask` through a Ray Serve handle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model says to a question of yes or no.

    probability: of yes, of the two, in [0, 1]; None where only the word is known, which is `yes`.
    """

    yes: bool
    probability: float | None = None

    @classmethod
    def likely(cls, probability: float) -> Answered:
        return cls(probability >= 0.5, probability)


class Ask(Protocol):
    """Puts prompts to a language model."""

    async def __call__(self, prompts: Sequence[str]) -> list[Answered | str]:
        """One answer a prompt, in order; a string is the error of that prompt alone. Bounds its own
        time. Cancelled, it stops what it has under way."""
        ...
