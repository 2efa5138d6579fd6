"""How long a run still takes, told from what its parts have taken so far."""

from __future__ import annotations

from collections.abc import Mapping


class Eta:
    """Time left, from what each kind of work has taken so far.

    `prior` says what a unit of each kind costs relative to the others before it has been seen, for
    example {"grpo step": 1.0, "dpo step": 0.3}; the kinds already seen scale it to seconds.
    """

    def __init__(self, prior: Mapping[str, float]) -> None:
        self._prior = dict(prior)
        self._seen: dict[str, tuple[float, float]] = {}  # kind -> (seconds, units)

    def observe(self, kind: str, seconds: float, units: float = 1.0) -> None:
        before_seconds, before_units = self._seen.get(kind, (0.0, 0.0))
        self._seen[kind] = (before_seconds + seconds, before_units + units)

    def remaining(self, todo: Mapping[str, float]) -> float | None:
        """Seconds for `todo` (kind -> units); None while nothing has been observed.
        KeyError for a kind that has neither a prior nor an observation."""
        scale = self._scale()
        if scale is None:
            return None
        return sum(units * self._unit_seconds(kind, scale) for kind, units in todo.items())

    def _scale(self) -> float | None:
        seen = [(s, u * self._prior[k]) for k, (s, u) in self._seen.items() if k in self._prior]
        expected = sum(units for _, units in seen)
        return sum(seconds for seconds, _ in seen) / expected if expected else None

    def _unit_seconds(self, kind: str, scale: float) -> float:
        seconds, units = self._seen.get(kind, (0.0, 0.0))
        return seconds / units if units else self._prior[kind] * scale
