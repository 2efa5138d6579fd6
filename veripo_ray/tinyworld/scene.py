"""A scene: the content of one clip, eight steps of a coloured shape on the left or the right."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scene:
    """What one clip shows. Colours and sides are its content, the rest is how it looks."""

    colours: tuple[str, ...]
    sides: tuple[str, ...]
    shape: str
    centre: tuple[int, int]
    radius: int
    shade: int

    @property
    def held_out(self) -> bool:
        """The content alone decides, so that no seed puts a held-out clip into training."""
        return hashlib.sha256(self.content.encode()).digest()[0] < 64

    @property
    def content(self) -> str:
        return " ".join(f"{c}-{s}" for c, s in zip(self.colours, self.sides, strict=True))
