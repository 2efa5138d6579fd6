"""Numbers as people read them in a terminal."""

from __future__ import annotations

UNKNOWN = "\N{EN DASH}"


def share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"


def tokens(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}"


def with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.3f}" if error is None else f"{value:.3f} ±{error:.3f}".replace("±0.", "±.")


def duration(seconds: float) -> str:
    """48s, 3m 05s, 2h 14m, 1d 03h."""
    total = round(seconds)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m {total % 60:02d}s"
    if total < 86_400:
        return f"{total // 3600}h {total % 3600 // 60:02d}m"
    return f"{total // 86_400}d {total % 86_400 // 3600:02d}h"
