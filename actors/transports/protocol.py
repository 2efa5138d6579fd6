"""What a transport does: one file each for the ways there are."""

from __future__ import annotations

from typing import Protocol

from actors.waiting import Actors, Failures
from veripo_ray.weights import Manifest


class Transport(Protocol):
    """Carries the weights of one update. Before it every holder has begun the update, after it
    those that are well finish it."""

    async def carry(self, manifest: Manifest, ranks: Actors, holders: Actors) -> Failures:
        """From all ranks, which gather together, to every holder. Gives back the holders that
        failed, and why: they may have some of the weights, and keep no other from its own.

        Raises what kept the ranks from sending, and ResourceError naming a rank that was missing.
        """
        ...
