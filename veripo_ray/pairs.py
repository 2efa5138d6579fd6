"""Preference pairs from the judged rollouts of one question.

Five families, defined in `_Source` where they are built, and two routes: both sides sampled, or
one side edited. The names and the two routes are VerIPO's; the definitions are this project's.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product

import numpy as np

from veripo_ray import config
from veripo_ray.editing import Editor, Encode
from veripo_ray.errors import DataError
from veripo_ray.records import Family, Group, JudgedGroup, Pair, Response
from veripo_ray.scoring import answers

Sides = tuple[Response, Response, str]  # chosen, rejected, explanation


def build_pairs(
    group: Group,
    judged: JudgedGroup,
    cfg: config.Pairs,
    *,
    encode: Encode,
    seed: int,
    family_counts: Counter[str] | None = None,
    checks: config.Checks | None = None,
) -> list[Pair]:
    """At most `cfg.per_question` different pairs of one group; the same arguments, the same pairs.

    `family_counts` counts the pairs of the run so far and is updated: each pair is taken from the
    family that lags furthest behind its wanted share `cfg.families`, of those that this group can
    serve. A group with an error in any verdict is masked and gives none. Edited responses are
    encoded by `encode` and checked under `checks`. Raises DataError when verdicts and rollouts
    do not match.
    """
    if judged.group_id != group.id or (
        judged.error is None and len(judged.verdicts) != len(group.rollouts)
    ):
        raise DataError(f"the verdicts of group {judged.group_id} do not fit group {group.id}")
    if judged.error or any(verdict.error for verdict in judged.verdicts):
        return []
    counts = Counter() if family_counts is None else family_counts
    rng = random.Random(f"{seed} {group.id}")
    source = _Source(group, judged, cfg, encode, checks or config.Checks(), rng)
    return list(_taken(source, group, cfg, counts))


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A possible pair; `make` builds it, or finds that it cannot be built."""

    rollouts: tuple[int, ...]
    make: Callable[[], Sides | None]


def _taken(
    source: _Source, group: Group, cfg: config.Pairs, counts: Counter[str]
) -> Iterator[Pair]:
    """Pairs, family by family as wanted, preferring rollouts that no pair has used yet."""
    pools = {f: source.candidates(f) for f in Family if cfg.families.get(f, 0) > 0}
    used: Counter[int] = Counter()
    taken: set[str] = set()
    while len(taken) < cfg.per_question and (pools := {f: p for f, p in pools.items() if p}):
        family = _most_wanted(pools, cfg.families, counts)
        pool = pools[family]
        best = min(pool, key=lambda candidate: sum(used[r] for r in candidate.rollouts))
        pool.remove(best)
        sides = best.make()
        if sides is None or not _lengths_fit(sides, cfg.max_length_ratio):
            continue
        pair = _pair(group, family, sides)
        if pair.id not in taken:
            taken.add(pair.id)
            counts[family] += 1
            used.update(best.rollouts)
            yield pair


def _most_wanted(
    pools: Mapping[Family, list[_Candidate]], wanted: Mapping[Family, float], counts: Counter[str]
) -> Family:
    """The family furthest behind its share of the next pair's total; the first of equals."""
    total, weights = sum(counts.values()) + 1, sum(wanted.values())
    return max(pools, key=lambda family: wanted[family] / weights * total - counts[family])


def _lengths_fit(sides: Sides, max_ratio: float) -> bool:
    shorter, longer = sorted(max(1, len(side.token_ids)) for side in sides[:2])
    return longer <= max_ratio * shorter


def _pair(group: Group, family: Family, sides: Sides) -> Pair:
    chosen, rejected, explanation = sides
    return Pair(
        id=_digest(group.question.id, family, chosen.token_ids, rejected.token_ids),
        group_id=group.id,
        question=group.question,
        prompt_ids=group.prompt_ids,
        family=family,
        chosen=chosen,
        rejected=rejected,
        explanation=explanation,
    )


def _digest(question: str, family: str, chosen: np.ndarray, rejected: np.ndarray) -> str:
    digest = hashlib.sha256()
    for part in (question.encode(), family.encode(), chosen.tobytes(), rejected.tobytes()):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


class _Source:
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

    def candidates(self, family: Family) -> list[_Candidate]:
        """The family's candidates in random order; for consistency, sampled sides come first."""
        found = list(_FAMILIES[family](self))
        self._rng.shuffle(found)
        return sorted(found, key=lambda candidate: len(candidate.rollouts) == 1)

    def accuracy(self) -> Iterator[_Candidate]:
        """Good against sound but wrong."""
        wrong = [r for r in self._sound if r.verdict.correct is False]
        for chosen, rejected in product(self._good, wrong):
            fault = rejected.verdict["accuracy"].reason
            yield _sampled(
                chosen, rejected, f"The chosen response is right; in the rejected {fault}."
            )

    def penalty(self) -> Iterator[_Candidate]:
        """Good against repetitive, cut off, ill-formed, too short or too long."""
        sound = {r.rollout for r in self._sound}
        for chosen, rejected in product(self._good, self._all):
            if rejected.rollout not in sound:
                fault = self._fault(rejected)
                why = f"The chosen response is right and clean; of the rejected: {fault}."
                yield _sampled(chosen, rejected, why)

    def consistency(self) -> Iterator[_Candidate]:
        """Good against right with thinking that contradicts the answer: another rollout, or the
        chosen one with its answer replaced."""
        wavering = [r for r in self._sound if r.verdict.correct and r.verdict.consistent is False]
        for chosen, rejected in product(self._good, wavering):
            fault = rejected.verdict["consistency"].reason
            yield _sampled(chosen, rejected, f"Both answers are right; in the rejected {fault}.")
        for chosen in self._good:
            yield _Candidate((_index(chosen),), partial(self._contradicted, chosen))

    def reflection(self) -> Iterator[_Candidate]:
        """Wrong thinking, a turn and the good thinking, against the wrong rollout. The wrong one is
        consistent, so that it is the thinking that went wrong."""
        wrong = [r for r in self._sound if r.verdict.correct is False and r.verdict.consistent]
        for good, rejected in product(self._good, wrong):
            make = partial(self._reflected, good, rejected)
            yield _Candidate((_index(good), _index(rejected)), make)

    def longer(self) -> Iterator[_Candidate]:
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


_FAMILIES: dict[Family, Callable[[_Source], Iterator[_Candidate]]] = {
    Family.ACCURACY: _Source.accuracy,
    Family.PENALTY: _Source.penalty,
    Family.CONSISTENCY: _Source.consistency,
    Family.REFLECTION: _Source.reflection,
    Family.LONGER: _Source.longer,
}


def _sampled(chosen: Response, rejected: Response, why: str) -> _Candidate:
    return _Candidate((_index(chosen), _index(rejected)), lambda: (chosen, rejected, why))


def _index(response: Response) -> int:
    assert response.rollout is not None
    return response.rollout


def _think_tokens(response: Response) -> float:
    return response.verdict["length"].value or 0.0
