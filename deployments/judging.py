"""The judges of one replica, and verdicts by them: in slices, side by side, within bounds.

Slices are what other requests, health checks and cancellation get in between. Each slice's checks
run in a thread; its judge waits on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from deployments.metrics import Metrics
from deployments.refusal import Refusal
from deployments.settings import Args
from veripo_ray.records import Verdict
from veripo_ray.verifier import tokens
from veripo_ray.verifier.judges import Judge, by_name
from veripo_ray.verifier.judges.breaker import Breaker
from veripo_ray.verifier.verify import Item, averify, undecided

SLICE = 128  # items
_SIDE_BY_SIDE = 4  # slices of one request under way
HELDOUT = "heldout"

BuildJudge = Callable[[str], Judge]


class Judging:
    """Verdicts of items by the curating judge or the held-out one."""

    def __init__(self, args: Args, build: BuildJudge, metrics: Metrics) -> None:
        self._args, self._metrics = args, metrics
        self._count_tokens = tokens.counter(args.tokenizer)
        self.curating = build(args.judge)
        self.heldout = build(args.heldout) if args.heldout else None

    def named(self, asked: str | None) -> Judge:
        """The judge of the query parameter `judge`. Raises Refusal for one that there is not."""
        if asked is None:
            return self.curating
        if asked != HELDOUT:
            raise Refusal(
                400,
                f"judge={asked[:80]!r} is not known",
                f"leave it out for the judge {self.curating.name}, or say judge={HELDOUT}",
            )
        if self.heldout is None:
            raise Refusal(
                400,
                "judge=heldout, but this verifier has no held-out judge",
                "start it with the setting heldout, such as heldout=tinyworld or heldout=openai",
            )
        return self.heldout

    @property
    def breakers(self) -> dict[str, Breaker]:
        judges = [self.curating, *([self.heldout] if self.heldout else [])]
        return {name: found for judge in judges for name, found in by_name.breakers(judge).items()}

    async def verdicts(self, items: Sequence[Item | str], judge: Judge) -> list[Verdict]:
        """One verdict an item, in order."""
        found: dict[int, Verdict] = {}
        async with aclosing(self.as_finished(items, judge)) as finished:
            async for start, verdicts in finished:
                found.update(enumerate(verdicts, start))
        return [found[index] for index in range(len(items))]

    async def as_finished(
        self, items: Sequence[Item | str], judge: Judge
    ) -> AsyncGenerator[tuple[int, list[Verdict]]]:
        """The verdicts of each slice, behind the index of its first item, as slices are finished.
        Closed early, it stops the work."""
        limit = asyncio.Semaphore(_SIDE_BY_SIDE)
        tasks = [
            asyncio.create_task(self._slice(start, items[start : start + SLICE], judge, limit))
            for start in range(0, len(items), SLICE)
        ]
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _slice(
        self, start: int, items: Sequence[Item | str], judge: Judge, limit: asyncio.Semaphore
    ) -> tuple[int, list[Verdict]]:
        """Verdicts of the valid items in one batch; the others keep their own error."""
        valid = [item for item in items if isinstance(item, Item)]
        async with limit:
            judged = iter(await averify(valid, judge, self._args.checks, self._count_tokens))
        verdicts = [next(judged) if isinstance(item, Item) else undecided(item) for item in items]
        self._metrics.verdicts(judge.name, verdicts)
        self._metrics.breakers(self.breakers)
        return start, verdicts

    async def close(self) -> None:
        for judge in (self.curating, self.heldout):
            if judge is not None:
                await by_name.close(judge)
