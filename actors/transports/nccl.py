"""Weights by NCCL broadcast, from GPU to GPUs: learner rank 0 sends, every process of every rollout
worker receives, through vLLM's own transfer.

All stand in one group, which a member's failure leaves unusable: whoever is lost in mid-broadcast
leaves the others waiting in it, until weights.timeout_s ends the sync. A group serves until its
members change.
"""

from __future__ import annotations

import asyncio
from typing import Any

from actors.transports.meeting import Met
from actors.waiting import Actors, Failures, Waiting, together
from veripo_ray import config
from veripo_ray.weights import Manifest

BUFFERS = 2  # one is filled while the other is on its way
GRACE_S = 30.0  # for the ranks to come out of a broadcast that some holder has left


class Nccl:
    """See `Transport`. processes: of one rollout worker (its tensor parallelism)."""

    def __init__(self, cfg: config.Weights, processes: int) -> None:
        self._cfg, self._processes = cfg, processes
        self._met = Met()

    async def carry(self, manifest: Manifest, ranks: Actors, holders: Actors) -> Failures:
        waiting = Waiting({**ranks, **holders}, self._cfg.timeout_s, "weights.timeout_s")
        if not self._met.by(ranks, holders):
            await self._meet(waiting, ranks, holders)
        doing = f"the broadcast of version {manifest.version}"
        told = update_info(manifest)
        receiving = {name: holder.receive.remote(told) for name, holder in holders.items()}
        sends = {name: rank.send.remote() for name, rank in ranks.items()}
        sending = asyncio.ensure_future(waiting.all(sends, doing))
        try:
            _, failures = await waiting.each(receiving, doing)
            if failures and not (await asyncio.wait({sending}, timeout=GRACE_S))[0]:
                raise together(failures)
            await sending
        except BaseException:
            self._met.forget()
            sending.cancel()
            raise
        if failures:
            self._met.forget()
        return failures

    async def _meet(self, waiting: Waiting, ranks: Actors, holders: Actors) -> None:
        doing = "meeting for NCCL"
        first = next(iter(ranks))
        address = await waiting.the(first, ranks[first].meeting_place.remote(), doing)
        size = 1 + self._processes * len(holders)
        calls = {
            name: rank.open_sender.remote("nccl", self._cfg, address, size)
            for name, rank in ranks.items()
        }
        for number, (name, holder) in enumerate(holders.items()):
            offset = 1 + self._processes * number
            info = init_info(address, offset, size, self._cfg.bucket_bytes)
            calls[name] = holder.connect.remote(info)
        await waiting.all(calls, doing)
        self._met.note(ranks, holders)


def init_info(
    address: tuple[str, int], rank_offset: int, world_size: int, bucket_bytes: int
) -> dict[str, Any]:
    """vLLM's NCCLWeightTransferInitInfo for a rollout worker whose first process has this rank."""
    return {
        "master_address": address[0],
        "master_port": address[1],
        "rank_offset": rank_offset,
        "world_size": world_size,
        "packed": True,
        "packed_buffer_size_bytes": bucket_bytes,
        "packed_num_buffers": BUFFERS,
    }


def update_info(manifest: Manifest) -> dict[str, Any]:
    """vLLM's NCCLWeightTransferUpdateInfo."""
    return {
        "names": list(manifest.shapes),
        "dtype_names": [manifest.dtype] * len(manifest.shapes),
        "shapes": [list(shape) for shape in manifest.shapes.values()],
    }
