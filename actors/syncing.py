"""The weight sync: the learner's weights, under a version, to those who hold a copy of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.calls import results_of


class WeightSync:
    """Learner ranks on one side; rollout workers or the reference, by name, on the other. Whoever
    is to be brought up to date is told anew at every sync."""

    def __init__(self, limit_s: float) -> None:
        """limit_s: the longest wait for any of them."""
        self._limit_s = limit_s

    async def publish(
        self, version: int, ranks: Mapping[str, Any], holders: Mapping[str, Any]
    ) -> None:
        """Bring all holders to the learner's present weights, which are called `version` from now
        on. Nobody may be sampling meanwhile."""
        weights = await self._snapshot(version, ranks)
        loads = [holder.load_weights.remote(version, [weights]) for holder in holders.values()]
        await results_of(loads, self._limit_s, f"the weight sync to {', '.join(holders)}")

    async def _snapshot(self, version: int, ranks: Mapping[str, Any]) -> Any:
        """A reference to the weights that train, as rank 0 returned them. All ranks take part,
        since a sharded learner gathers."""
        answers = [rank.weights.options(num_returns=2).remote(version) for rank in ranks.values()]
        receipts = [receipt for receipt, _ in answers]
        await results_of(receipts, self._limit_s, "gathering the learner's weights")
        return answers[0][1]
