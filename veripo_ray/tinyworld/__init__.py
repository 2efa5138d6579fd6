"""A world small enough that the whole method can be seen to work on a laptop.

Clips show one coloured shape that jumps between left and right for eight steps. Questions ask how
often a colour was seen, how often the shape moved, which colour came last or after another. The
policy is a real Qwen2.5-VL of about 300k parameters, shipped in `checkpoint/`.
"""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The shipped policy after its cold start (see `veripo_ray/recipes/tinyworld_sft.yaml`)."""
