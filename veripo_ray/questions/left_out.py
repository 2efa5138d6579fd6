"""What a run could not use: all of it counted, the first by name, so that a data set of many bad
rows costs no more than one of few."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

from veripo_ray.runlog import BadItem

NAMED = 1000


class LeftOut(BaseModel):
    """How many items were left out, and which the first were."""

    count: int = 0
    first: list[BadItem] = []

    def add(self, item: BadItem) -> None:
        self.count += 1
        if len(self.first) < NAMED:
            self.first.append(item)

    @classmethod
    def of(cls, items: Iterable[BadItem]) -> LeftOut:
        left_out = cls()
        for item in items:
            left_out.add(item)
        return left_out

    def told(self, limit: int) -> str:
        """The first `limit` items, a line each, and how many more there are."""
        lines = [f"  {item.name}: {item.reason.splitlines()[0]}" for item in self.first[:limit]]
        more = self.count - len(lines)
        return "\n".join([*lines, f"  ... and {more} more"] if more else lines)
