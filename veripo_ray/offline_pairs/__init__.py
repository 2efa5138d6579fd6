"""`veripo pairs FILE`: preference pairs from the rollouts of any trainer, without a run.

`rows` reads the file into questions with their responses, `build` judges them and takes pairs as a
run does, `printed` says what became of them.
"""

from veripo_ray.offline_pairs.build import build_file
from veripo_ray.offline_pairs.settings import OfflinePairs

__all__ = ["OfflinePairs", "build_file"]
