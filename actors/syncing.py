"""The weight sync: the learner's weights, under a version, to those who hold a copy of them.

A holder (rollout worker or reference) goes through `begin_update`, which checks what is announced
and changes nothing; then its weights are replaced, and until `finish_update` has dropped what the
old ones computed it is STALE and serves nothing. Whoever fails on the way stays STALE, and is
refitted once through the object store before the sync ends.
"""

from __future__ import annotations

import logging

from actors.transports import ObjectStore, Transport, direct
from actors.waiting import Actors, Failures, Waiting, is_gone, together
from veripo_ray import config
from veripo_ray.weights import Manifest

LOG = logging.getLogger(__name__)


class WeightSync:
    """Learner ranks on one side; rollout workers or the reference, by name, on the other. Whoever
    is to be brought up to date is told anew at every sync, and must not be sampling."""

    def __init__(
        self,
        cfg: config.Weights,
        transport: config.TransportName = "object_store",
        processes: int = 1,
    ) -> None:
        """transport: to the rollout workers, of so many processes each."""
        self._cfg = cfg
        self._object_store = ObjectStore(cfg)
        self._direct: Transport = direct(transport, cfg, processes)

    async def publish(self, version: int, ranks: Actors, workers: Actors) -> None:
        """Bring all rollout workers to the learner's present weights, called `version` from now on.

        Raises CheckpointError, with nothing changed, when some worker has other weights than the
        learner; LostError for one that died, MissingError for one that did not answer; and what a
        refit failed of. They name every worker and rank that they are about.
        """
        await self._sync(version, ranks, workers, self._direct)

    async def refit(self, version: int, ranks: Actors, holders: Actors) -> None:
        """The same through the object store: for the reference, and for a worker on its own."""
        await self._sync(version, ranks, holders, self._object_store)

    async def _sync(
        self, version: int, ranks: Actors, holders: Actors, transport: Transport
    ) -> None:
        waiting = Waiting({**ranks, **holders}, self._cfg.timeout_s, "weights.timeout_s")
        stamps = {name: rank.manifest.remote(version) for name, rank in ranks.items()}
        manifest, *_ = (await waiting.all(stamps, f"naming weights version {version}")).values()
        failures = await self._update(waiting, transport, manifest, ranks, holders)
        if failures and not any(map(is_gone, failures.values())):
            LOG.warning("refitting through the object store: %s", together(failures))
            failed = {name: holders[name] for name in failures}
            failures = await self._update(waiting, self._object_store, manifest, ranks, failed)
        if failures:
            raise together(failures)

    async def _update(
        self,
        waiting: Waiting,
        transport: Transport,
        manifest: Manifest,
        ranks: Actors,
        holders: Actors,
    ) -> Failures:
        """One attempt. Gives back who failed in it, and is STALE."""
        doing = f"before the update to version {manifest.version}"
        begun = {name: holder.begin_update.remote(manifest) for name, holder in holders.items()}
        await waiting.all(begun, doing)
        failures = await transport.carry(manifest, ranks, holders)
        well = {name: holder for name, holder in holders.items() if name not in failures}
        finished = {name: holder.finish_update.remote() for name, holder in well.items()}
        _, failed = await waiting.each(finished, f"finishing the update to {manifest.version}")
        return failures | failed
