"""Quantities: numbers with units of length, time or mass, which can be converted."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LENGTHS = {"mm": 0.001, "cm": 0.01, "m": 1.0, "km": 1000.0, "inch": 0.0254, "foot": 0.3048}
_TIMES = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_MASSES = {"g": 1.0, "kg": 1000.0}
_SCALE = {
    **{unit: ("length", size) for unit, size in _LENGTHS.items()},
    **{unit: ("time", size) for unit, size in _TIMES.items()},
    **{unit: ("mass", size) for unit, size in _MASSES.items()},
}
_SPELT = {
    "millimeter": "mm",
    "millimetre": "mm",
    "centimeter": "cm",
    "centimetre": "cm",
    "meter": "m",
    "metre": "m",
    "kilometer": "km",
    "kilometre": "km",
    "inche": "inch",
    "feet": "foot",
    "millisecond": "ms",
    "second": "s",
    "sec": "s",
    "minute": "min",
    "hour": "h",
    "gram": "g",
    "kilogram": "kg",
}
_WORDS = "|".join(sorted({*_SCALE, *_SPELT}, key=len, reverse=True))
_UNIT = rf"({_WORDS})s?(?![\w/^\xb2\xb3])(?! (?:per|squared|cubed))"
_BEHIND = re.compile(rf"\s?-?(?:\\text\{{)?\s?{_UNIT}", re.IGNORECASE)
_ASKED = re.compile(rf"\bin {_UNIT}|\({_UNIT}\)", re.IGNORECASE)
_QUESTION = 2000  # characters at its end


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number, with its unit where that is one which can be converted."""

    value: float
    unit: str | None = None

    def within(self, unit: str | None) -> float | None:
        """The number in another unit; None when the two measure different things. A number
        without a unit is taken to be in the other's."""
        if unit is None or self.unit is None or unit == self.unit:
            return self.value
        (sort, size), (other, other_size) = _SCALE[self.unit], _SCALE[unit]
        return self.value * size / other_size if sort == other else None


def asked(question: str) -> str | None:
    """The unit in which a question wants its answer, as in `how long, in meters?`."""
    found = list(_ASKED.finditer(question[-_QUESTION:]))
    return _short(found[-1][1] or found[-1][2]) if found else None


def behind(text: str, end: int) -> str | None:
    """The unit of the number that ends there."""
    match = _BEHIND.match(text, end)
    return _short(match[1]) if match else None


def _short(word: str) -> str:
    word = word.casefold()
    return _SPELT.get(word, word)
