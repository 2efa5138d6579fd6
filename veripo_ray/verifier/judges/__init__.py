"""Judges of consistency: does the answer follow from the thinking?

Siblings behind one small protocol, `Judge`. `rules` reads the conclusion that the thinking itself
states.
"""

from veripo_ray.verifier.judges.case import Case, Judge, Judgement
from veripo_ray.verifier.judges.rules import Rules

__all__ = ["Case", "Judge", "Judgement", "Rules"]
