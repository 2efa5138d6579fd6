"""Judges of consistency: does the answer follow from the thinking?

Siblings behind one small protocol, `Judge`. `rules` reads the conclusion that the thinking itself
states; `tinyworld` parses the tiny world's chains; `vllm` and `openai` ask a language model for yes
or no, through an `Ask`; a committee asks several. `build` makes the one that the settings name.
"""

from veripo_ray.verifier.judges.ask import Answered, Ask
from veripo_ray.verifier.judges.by_name import breakers, build, close
from veripo_ray.verifier.judges.case import Case, Judge, Judgement
from veripo_ray.verifier.judges.rules import Rules
from veripo_ray.verifier.judges.tinyworld import TinyWorld

__all__ = [
    "Answered",
    "Ask",
    "Case",
    "Judge",
    "Judgement",
    "Rules",
    "TinyWorld",
    "breakers",
    "build",
    "close",
]
