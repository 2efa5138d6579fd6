"""Chains of thought with a label, consistent or not, and its reason: what judges are measured on.

`video_qa` is written and labelled by hand (see README.md beside it), `tinyworld` is generated and
labelled exactly; a user's own are a JSONL file of `Labelled`, one a line.
"""

from veripo_ray.verifier.labelled.load import NAMES, load
from veripo_ray.verifier.labelled.record import Labelled

__all__ = ["NAMES", "Labelled", "load"]
