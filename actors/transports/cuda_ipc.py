"""Weights within GPUs that learner ranks and rollout workers share: a rank copies a bucket into a
buffer, and tells the workers on the same GPU where it lies, through vLLM's own transfer.

Every GPU of a rollout worker needs a learner rank on it (placement.layout = colocated).
"""

from __future__ import annotations

from actors.transports.meeting import Met
from actors.waiting import Actors, Failures, Waiting
from veripo_ray import config
from veripo_ray.weights import Manifest


class CudaIpc:
    """See `Transport`."""

    def __init__(self, cfg: config.Weights) -> None:
        self._cfg = cfg
        self._met = Met()

    async def carry(self, manifest: Manifest, ranks: Actors, holders: Actors) -> Failures:
        # a rank that waits for a worker in vain says so itself, after weights.timeout_s
        waiting = Waiting(ranks, 2 * self._cfg.timeout_s, "twice weights.timeout_s")
        if not self._met.by(ranks, holders):
            calls = {
                name: rank.open_sender.remote("cuda_ipc", self._cfg, dict(holders))
                for name, rank in ranks.items()
            }
            await waiting.all(calls, "meeting for CUDA IPC")
            self._met.note(ranks, holders)
        calls = {name: rank.send.remote() for name, rank in ranks.items()}
        doing = f"sending weights of version {manifest.version}"
        try:
            answers = await waiting.all(calls, doing)
        except BaseException:
            self._met.forget()
            raise
        return answers[next(iter(ranks))]
