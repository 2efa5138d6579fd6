"""Several decoders, so that files are decoded side by side."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from queue import LifoQueue

import numpy as np

from veripo_ray.config import Video
from veripo_ray.video.decode import Clip, Decoder


class Decoders:
    """`count` decoders behind the verbs of one. For as many threads as like; those that find no
    decoder free wait for one. A process is started when it is first needed."""

    def __init__(self, cfg: Video, *, factor: int, count: int) -> None:
        self._all = [Decoder(cfg, factor=factor) for _ in range(count)]
        self._free: LifoQueue[Decoder] = LifoQueue()  # the one used last has its process already
        for decoder in self._all:
            self._free.put(decoder)

    def clip(self, path: str | Path) -> Clip:
        """As `Decoder.clip`."""
        decoder = self._free.get()
        try:
            return decoder.clip(path)
        finally:
            self._free.put(decoder)

    def images(self, paths: Iterable[str | Path]) -> list[np.ndarray]:
        """As `Decoder.images`; this needs no process."""
        return self._all[0].images(paths)

    def close(self) -> None:
        for decoder in self._all:
            decoder.close()
