"""Verdicts as JSON lines, each as soon as it is there: `{"index": ..., "verdict": {...}}`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from deployments.judging import Judging
from veripo_ray.records import Verdict
from veripo_ray.verifier.judges import Judge
from veripo_ray.verifier.shapes import VerdictLine
from veripo_ray.verifier.verify import Item, undecided


class Lines:
    """The reply of one request, whose time runs from here on: `timeout_s` seconds."""

    def __init__(self, judging: Judging, timeout_s: float) -> None:
        self._judging, self._timeout_s = judging, timeout_s
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
                yield b"".join(_line(index, v) for index, v in enumerate(verdicts, start))
        late = undecided(f"no verdict within {self._timeout_s:g} s")
        for index in sorted(waiting):
            yield _line(index, late)


def _line(index: int, verdict: Verdict) -> bytes:
    return VerdictLine(index=index, verdict=verdict).model_dump_json().encode() + b"\n"
