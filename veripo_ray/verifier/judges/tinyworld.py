"""The judge of the tiny world's chains, which shares nothing with `rules`: for evaluation.

It reads the controlled language that `veripo_ray.tinyworld.chains` writes, by its grammar:

    chain      := clause* conclusion
    clause     := look | conclusion | conclusion "wait"
    look       := frame [colour [number] | side number]
    conclusion := "so" [colour] letter | "so" number

A look may break off behind its frame: a chain that repeats itself does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from veripo_ray.tinyworld.vocabulary import COLOURS, FRAMES, LETTERS, NUMBERS, SIDES
from veripo_ray.verifier.judges.case import Case, Judgement


def _any(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(words)})"


_SEEN = rf"{_any(COLOURS)}(?:\s+{_any(NUMBERS)})?|{_any(SIDES)}\s+{_any(NUMBERS)}"
_LOOK = rf"{_any(FRAMES)}(?:\s+(?:{_SEEN}))?"
_SO = rf"so\s+(?:(?:{_any(COLOURS)}\s+)?(?P<letter>{_any(LETTERS)})|(?P<number>{_any(NUMBERS)}))"
_CLAUSE = re.compile(rf"\s*(?:{_LOOK}|(?P<so>{_SO})(?P<wait>\s+wait)?)(?!\S)")
_ANSWER = re.compile(_any((*LETTERS, *NUMBERS)))


class TinyWorld:
    """Compares the last conclusion with the answer, word by word. Exact on the tiny world's own
    chains; whatever is not in their language is undecided."""

    name = "tinyworld"

    async def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        return [_judge(case) for case in cases]


def _judge(case: Case) -> Judgement:
    last = _conclusion(case.thinking)
    if last is None:
        return Judgement(None, "the thinking is no chain in the tiny world's language")
    concluded, answer = last["letter"] or last["number"], case.answer.strip()
    if not _ANSWER.fullmatch(answer):
        reason = f"the answer {answer[:80]!r} is no word of the tiny world's answers"
        return Judgement(None, reason, last.span("so"))
    agree = concluded == answer
    verb = "agrees with" if agree else "contradicts"
    reason = f"the chain ends in 'so {concluded}', which {verb} the answer {answer!r}"
    return Judgement(agree, reason, last.span("so"))


def _conclusion(thinking: str) -> re.Match[str] | None:
    """The clause that a whole chain ends in; None for what is no chain."""
    end, position, last = len(thinking.rstrip()), 0, None
    while position < end:
        last = _CLAUSE.match(thinking, position)
        if last is None:
            return None
        position = last.end()
    return last if last and last["so"] and not last["wait"] else None
