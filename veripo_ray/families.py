"""The five families of pairs: which rollouts of a group can be chosen and rejected, and why.

The names and the two routes, both sides sampled or one side edited, are VerIPO's; the definitions
are this project's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product

import numpy as np

from veripo_ray import config
from veripo_ray.editing import Editor, Encode
from veripo_ray.records import Family, Group, JudgedGroup, Response
from veripo_ray.scoring import answers

Sides = tuple[Response, Response, str]  # chosen, rejected, explanation


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible pair; `make` builds it, or finds that it cannot be built."""

    rollouts: tuple[int, ...]
    make: Callable[[], Sides | None]


class Source:
    """The rollouts of one group, sorted by what the verdicts say, and the families they serve.

    Sound: clean and ended by itself. Good: sound, correct and consistent; every chosen side is
    good, or edited from a good one.
    """

    def __init__(
        self,
        group: Group,
        judged: JudgedGroup,
        cfg: config.Pairs,
        encode: Encode,
        checks: config.Checks,
        rng: random.Random,
    ) -> None:
        self._group, self._cfg, self._rng = group, cfg, rng
        self._encode, self._checks = encode, checks
        self._all = [
            Response(text=r.text, token_ids=r.token_ids, rollout=index, verdict=verdict)
            for index, (r, verdict) in enumerate(zip(group.rollouts, judged.verdicts, strict=True))
        ]
        self._sound = [r for r in self._all if r.verdict.clean and not self._cut_off(r)]
        self._good = [r for r in self._sound if r.verdict.correct and r.verdict.consistent]

    def candidates(self, family: Family) -> list[Candidate]:
        """The family's candidates in random order; for consistency, sampled sides come first."""
        found = list(_FAMILIES[family](self))
        self._rng.shuffle(found)
        return sorted(found, key=lambda candidate: len(candidate.rollouts) == 1)

    def accuracy(self) -> Iterator[Candidate]:
        """Good against sound but wrong."""
        wrong = [r for r in self._sound if r.verdict.correct is False]
        for chosen, rejected in product(self._good, wrong):
            fault = rejected.verdict["accuracy"].reason
            yield _sampled(
                chosen, rejected, f"The chosen response is right; in the rejected {fault}."
            )

    def penalty(self) -> Iterator[Candidate]:
        """Good against repetitive, cut off, ill-formed, too short or too long."""
        sound = {r.rollout for r in self._sound}
        for chosen, rejected in product(self._good, self._all):
            if rejected.rollout not in sound:
                fault = self._fault(rejected)
                why = f"The chosen response is right and clean; of the rejected: {fault}."
                yield _sampled(chosen, rejected, why)

    def consistency(self) -> Iterator[Candidate]:
        """Good against right with thinking that contradicts the answer: another rollout, or the
        chosen one with its answer replaced."""
        wavering = [r for r in self._sound if r.verdict.correct and r.verdict.consistent is False]
        for chosen, rejected in product(self._good, wavering):
            fault = rejected.verdict["consistency"].reason
            yield _sampled(chosen, rejected, f"Both answers are right; in the rejected {fault}.")
        for chosen in self._good:
            yield Candidate((_index(chosen),), partial(self._contradicted, chosen))

    def reflection(self) -> Iterator[Candidate]:
        """Wrong thinking, a turn and the good thinking, against the wrong rollout. The wrong one is
        consistent, so that it is the thinking that went wrong."""
        wrong = [r for r in self._sound if r.verdict.correct is False and r.verdict.consistent]
        for good, rejected in product(self._good, wrong):
            make = partial(self._reflected, good, rejected)
            yield Candidate((_index(good), _index(rejected)), make)

    def longer(self) -> Iterator[Candidate]:
        """Both good; the longer thinking is chosen."""
        for chosen, rejected in permutations(self._good, 2):
            more, less = _think_tokens(chosen), _think_tokens(rejected)
            if more > less:
                why = (
                    f"Both are right, consistent and free of repetition; the chosen thinking has "
                    f"{more:.0f} tokens, the rejected one {less:.0f}."
                )
                yield _sampled(chosen, rejected, why)

    def _contradicted(self, chosen: Response) -> Sides | None:
        wrong = [r for r in self._sound if r.verdict.correct is False]
        given = [answers.split(r.text).answer_text or "" for r in wrong]
        rejected = self._editor(chosen).contradict(chosen, given, self._rng)
        if rejected is None:
            return None
        return (
            chosen,
            rejected,
            f"The rejected response is {rejected.verdict['consistency'].reason}.",
        )

    def _reflected(self, good: Response, wrong: Response) -> Sides | None:
        chosen = self._editor(good).reflect(wrong, good, self._cfg.reflective_turn)
        why = (
            "The chosen response begins like the rejected one, whose thinking goes wrong, then "
            "turns round and gets it right."
        )
        return None if chosen is None else (chosen, wrong, why)

    def _editor(self, good: Response) -> Editor:
        ids: np.ndarray = good.token_ids
        stop_id = int(ids[-1])  # a good rollout stopped by itself
        return Editor(self._group.question, self._encode, stop_id, self._checks)

    def _cut_off(self, response: Response) -> bool:
        return self._group.rollouts[_index(response)].finish_reason != "stop"

    def _fault(self, response: Response) -> str:
        if self._cut_off(response):
            return "it was cut off at the token limit"
        checks = (response.verdict[name] for name in ("format", "repetition", "length"))
        return next(check.reason for check in checks if check.passed is not True)


_FAMILIES: dict[Family, Callable[[Source], Iterator[Candidate]]] = {
    Family.ACCURACY: Source.accuracy,
    Family.PENALTY: Source.penalty,
    Family.CONSISTENCY: Source.consistency,
    Family.REFLECTION: Source.reflection,
    Family.LONGER: Source.longer,
}


def _sampled(chosen: Response, rejected: Response, why: str) -> Candidate:
    return Candidate((_index(chosen), _index(rejected)), lambda: (chosen, rejected, why))


def _index(response: Response) -> int:
    assert response.rollout is not None
    return response.rollout


def _think_tokens(response: Response) -> float:
    return response.verdict["length"].value or 0.0
