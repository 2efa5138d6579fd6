"""What the learner trains on, and how it is dealt out to ranks and cut into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from veripo_ray.policy.grouped import Packed, micro_batches
from veripo_ray.policy.media import Media
from veripo_ray.records import Group, Pair


@dataclass(frozen=True, slots=True)
class TrainGroup:
    """A group as GRPO needs it.

    prompt_ids: [P] int32, expanded; responses: G vectors [R_i] int32; old_logprobs: G vectors
    [R_i] float32, recorded at sampling; advantages: [G] float32; ref_logprobs: as old_logprobs,
    of the reference policy, wanted only with a KL term; proximal_logprobs: as old_logprobs, of the
    learner before the first of several steps on one rollout batch, wanted only with truncated
    importance sampling.
    """

    id: str
    prompt_ids: np.ndarray
    responses: Sequence[np.ndarray]
    old_logprobs: Sequence[np.ndarray]
    advantages: np.ndarray
    ref_logprobs: Sequence[np.ndarray] | None = None
    proximal_logprobs: Sequence[np.ndarray] | None = None

    def packed(self, features: tuple[Media, ...] = ()) -> Packed:
        return Packed(self.prompt_ids, features, tuple(self.responses))


@dataclass(frozen=True, slots=True)
class TrainPair:
    """A pair as DPO needs it; reference_*: summed log-probabilities under the reference."""

    id: str
    prompt_ids: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    reference_chosen: float
    reference_rejected: float

    def packed(self, features: tuple[Media, ...] = ()) -> Packed:
        return Packed(self.prompt_ids, features, (self.chosen, self.rejected))


@dataclass(frozen=True, slots=True)
class ToScore:
    """A group or a pair of which nothing is wanted but log-probabilities."""

    id: str
    prompt_ids: np.ndarray
    responses: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, item: Group | Pair) -> ToScore:
        sides = (item.chosen, item.rejected) if isinstance(item, Pair) else item.rollouts
        return cls(item.id, item.prompt_ids, tuple(side.token_ids for side in sides))

    def packed(self, features: tuple[Media, ...] = ()) -> Packed:
        return Packed(self.prompt_ids, features, self.responses)


Example = TrainGroup | TrainPair | ToScore


def share(count: int, rank: int, world_size: int) -> range:
    """Indices of the examples that a rank trains."""
    return range(rank, count, world_size)


def rounds(
    examples: Sequence[Example], rank: int, world_size: int, token_budget: int
) -> list[list[int]]:
    """This rank's micro-batches, as lists of indices into `examples`.

    Every rank gets equally many, because collectives pair up: the ones that a rank has too few of
    are empty.
    """
    cuts = [
        _cut(examples, share(len(examples), other, world_size), token_budget)
        for other in range(world_size)
    ]
    idle = max(map(len, cuts)) - len(cuts[rank])
    return [*cuts[rank], *[[] for _ in range(idle)]]


def _cut(examples: Sequence[Example], indices: range, token_budget: int) -> list[list[int]]:
    """Examples without a single response token have nothing to teach and are left out."""
    packed = {index: examples[index].packed() for index in indices}
    trained = [index for index in indices if any(map(len, packed[index].responses))]
    parts = micro_batches([packed[index] for index in trained], token_budget)
    return [[trained[place] for place in part] for part in parts]
