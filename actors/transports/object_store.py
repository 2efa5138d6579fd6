"""Weights through Ray's object store: on any cluster, of CPUs or GPUs, and when another way failed.

Rank 0 puts one bucket after the other. Every holder reads it where it lies (or fetches it, once a
node) and loads it, while the next is on its way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from actors.waiting import Actors, Failures, Waiting, is_gone
from veripo_ray import config
from veripo_ray.weights import Manifest

AHEAD = 2  # buckets that holders have or wait for; rank 0 makes as many meanwhile


class ObjectStore:
    """See `Transport`."""

    def __init__(self, cfg: config.Weights) -> None:
        self._cfg = cfg

    async def carry(self, manifest: Manifest, ranks: Actors, holders: Actors) -> Failures:
        everyone = {**ranks, **holders}
        waiting = Waiting(everyone, self._cfg.timeout_s, "weights.timeout_s")
        doing = f"sending weights of version {manifest.version}"
        streams = {name: self._stream(rank) for name, rank in ranks.items()}
        source, failures = next(iter(ranks)), Failures()
        loading: deque[dict[str, Any]] = deque()

        async def loaded() -> None:
            """The oldest bucket is with everyone; the first failure of each is what counts."""
            gone = {name for name, failure in failures.items() if is_gone(failure)}
            calls = {n: call for n, call in loading.popleft().items() if n not in gone}
            _, failed = await waiting.each(calls, f"loading weights of version {manifest.version}")
            failures.update(failed | failures)

        while bucket := await waiting.the(source, _next(streams[source]), doing):
            well = {name: holder for name, holder in holders.items() if name not in failures}
            loading.append({n: holder.take.remote(bucket) for n, holder in well.items()})
            if len(loading) == AHEAD:
                await loaded()
        while loading:
            await loaded()
        await waiting.all({name: stream.completed() for name, stream in streams.items()}, doing)
        return failures

    def _stream(self, rank: Any) -> Any:
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": AHEAD}
        return rank.weights.options(**options).remote(self._cfg.bucket_bytes)


async def _next(stream: Any) -> Any:
    """A reference to the next bucket, None after the last. In a thread: the asynchronous way of
    Ray's would bring the bucket to this node to see whether it is there."""
    return await asyncio.to_thread(next, stream, None)
