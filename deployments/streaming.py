"""Verdicts as JSON lines, each as soon as it is there: `{"index": ..., "verdict": {...}}`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from deployments.admission import Ticket
from deployments.judging import Judging
from veripo_ray.records import Verdict
from veripo_ray.verifier.judges import Judge
from veripo_ray.verifier.shapes import VerdictLine
from veripo_ray.verifier.verify import Item, undecided


class Lines:
    """The reply of one request, whose time runs from here on: `timeout_s` seconds. `ticket` counts
    the items with errors."""

    def __init__(self, judging: Judging, ticket: Ticket, timeout_s: float) -> None:
        self._judging, self._ticket, self._timeout_s = judging, ticket, timeout_s
        self._deadline = asyncio.get_running_loop().time() + timeout_s

    async def of(self, items: Sequence[Item | str], judge: Judge) -> AsyncIterator[bytes]:
        """One line an item, in the order in which they are finished. What is not finished in time
        is given up, and says so in its own line."""
        waiting = set(range(len(items)))
        async with aclosing(self._judging.as_finished(items, judge)) as finished:
            while waiting:
                try:
                    async with asyncio.timeout_at(self._deadline):
                        start, verdicts = await anext(finished)
                except TimeoutError:
                    break
                waiting.difference_update(range(start, start + len(verdicts)))
                yield b"".join(self._line(index, v) for index, v in enumerate(verdicts, start))
        late = undecided(f"no verdict within {self._timeout_s:g} s")
        for index in sorted(waiting):
            yield self._line(index, late)

    def _line(self, index: int, verdict: Verdict) -> bytes:
        self._ticket.errors += verdict.error is not None
        return VerdictLine(index=index, verdict=verdict).model_dump_json().encode() + b"\n"
