"""A process that writes arrays to a cache: `FOLDER KEY ROWS TIMES [die]`. Says when it begins.

With `die` it is killed outright when an array is written and not yet in its place.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from veripo_ray.features.cache import DiskCache


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    folder, key, rows, times, *more = sys.argv[1:]
    array = np.arange(int(rows) * 64, dtype=np.float32).reshape(-1, 64)
    cache = DiskCache(Path(folder), 1 << 30)
    if more == ["die"]:
        os.replace = die
    print("ready", flush=True)  # noqa: T201
    for _ in range(int(times)):
        cache.put(key, {"rows": int(rows)}, array)
