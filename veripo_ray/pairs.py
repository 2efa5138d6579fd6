"""Preference pairs from the judged rollouts of one question: which of those that are possible.

What a pair can be, family by family, is in `families`.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from veripo_ray import config
from veripo_ray.editing import Encode
from veripo_ray.errors import DataError
from veripo_ray.families import Candidate, Sides, Source
from veripo_ray.records import Family, Group, JudgedGroup, Pair

# Why a candidate became no pair.
NO_EDIT = "no edit of it is right and clean"
LENGTHS = "one side is more than max_length_ratio times as long as the other"
SAME_TEXT = "it reads like a pair already taken, or its sides like each other"
QUOTA = "its family's quota is full"
ENOUGH = "its question has per_question pairs"


def build_pairs(
    group: Group,
    judged: JudgedGroup,
    cfg: config.Pairs,
    *,
    encode: Encode,
    seed: int,
    family_counts: Counter[str] | None = None,
    left_out: Counter[str] | None = None,
    checks: config.Checks | None = None,
) -> list[Pair]:
    """At most `cfg.per_question` different pairs of one group; the same arguments, the same pairs.

    `family_counts` counts the pairs of the run so far and is updated: each pair is taken from the
    family that lags furthest behind its wanted share `cfg.families`, of those that this group can
    serve and whose quota `cfg.quotas` is not full. `left_out` is updated, too, with the candidates
    that became no pair, by reason. A group with an error in any verdict is masked and gives none.
    Edited responses are encoded by `encode` and checked under `checks`. Raises DataError when
    verdicts and rollouts do not match.
    """
    if judged.group_id != group.id or (
        judged.error is None and len(judged.verdicts) != len(group.rollouts)
    ):
        raise DataError(f"the verdicts of group {judged.group_id} do not fit group {group.id}")
    if judged.error or any(verdict.error for verdict in judged.verdicts):
        return []
    rng = random.Random(f"{seed} {group.id}")
    source = Source(group, judged, cfg, encode, checks or config.Checks(), rng)
    counts = Counter() if family_counts is None else family_counts
    choice = _Choice(group, cfg, counts, Counter() if left_out is None else left_out)
    return list(choice.of(source))


class _Choice:
    """Which candidates of a group become pairs, and why the others do not."""

    def __init__(
        self, group: Group, cfg: config.Pairs, counts: Counter[str], left_out: Counter[str]
    ) -> None:
        self._group, self._cfg = group, cfg
        self._counts, self._left_out = counts, left_out
        self._used: Counter[int] = Counter()
        self._read: set[tuple[str, str]] = set()  # sides up to white space

    def of(self, source: Source) -> Iterator[Pair]:
        """Pairs, family by family as wanted, preferring rollouts that no pair has used yet."""
        pools = {f: source.candidates(f) for f in Family if self._cfg.families.get(f, 0) > 0}
        taken = 0
        while taken < self._cfg.per_question and (pools := self._open(pools)):
            family = _most_wanted(pools, self._cfg.families, self._counts)
            best = min(pools[family], key=lambda c: sum(self._used[r] for r in c.rollouts))
            pools[family].remove(best)
            if sides := self._sides(best):
                taken += 1
                self._counts[family] += 1
                self._used.update(best.rollouts)
                yield _pair(self._group, family, sides)
        self._leave(ENOUGH, sum(map(len, pools.values())))

    def _open(self, pools: dict[Family, list[Candidate]]) -> dict[Family, list[Candidate]]:
        """The pools that another pair may be taken from."""
        quotas = self._cfg.quotas
        full = [f for f in pools if f in quotas and self._counts[f] >= quotas[f]]
        self._leave(QUOTA, sum(len(pools[family]) for family in full))
        return {family: pool for family, pool in pools.items() if pool and family not in full}

    def _sides(self, candidate: Candidate) -> Sides | None:
        """Both sides and why, unless the candidate makes no pair."""
        sides = candidate.make()
        if problem := self._problem(sides):
            self._leave(problem)
            return None
        return sides

    def _problem(self, sides: Sides | None) -> str:
        """What keeps these sides from being a pair, if anything does."""
        if sides is None:
            return NO_EDIT
        if not _lengths_fit(sides, self._cfg.max_length_ratio):
            return LENGTHS
        chosen, rejected = (" ".join(side.text.split()) for side in sides[:2])
        if chosen == rejected or (chosen, rejected) in self._read:
            return SAME_TEXT
        self._read.add((chosen, rejected))
        return ""

    def _leave(self, reason: str, count: int = 1) -> None:
        if count:
            self._left_out[reason] += count


def _most_wanted(
    pools: Mapping[Family, list[Candidate]], wanted: Mapping[Family, float], counts: Counter[str]
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
