"""Who has met whom, so that ranks and holders need not meet again before every sync."""

from __future__ import annotations

from actors.waiting import Actors


class Met:
    """The actors that met last, if nothing has parted them since."""

    def __init__(self) -> None:
        self._who: tuple[str, ...] = ()

    def by(self, ranks: Actors, holders: Actors) -> bool:
        return self._who == _ids(ranks, holders)

    def note(self, ranks: Actors, holders: Actors) -> None:
        self._who = _ids(ranks, holders)

    def forget(self) -> None:
        self._who = ()


def _ids(ranks: Actors, holders: Actors) -> tuple[str, ...]:
    return tuple(actor._actor_id.hex() for actor in (*ranks.values(), *holders.values()))
