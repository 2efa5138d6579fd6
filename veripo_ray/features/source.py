"""Where the features of a question's media come from: the disk cache, or decoder and tower."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from veripo_ray import config
from veripo_ray.features.cache import DiskCache, default_folder
from veripo_ray.features.keys import Keys
from veripo_ray.features.stored import pack_features, pack_film, unpack_features, unpack_film
from veripo_ray.policy.media import Features, Frames, Media, Modality
from veripo_ray.policy.qwen_vl import read_spec
from veripo_ray.policy.tower import Tower
from veripo_ray.records import Question
from veripo_ray.video.decode import Clip
from veripo_ray.video.decoders import Decoders

FILMS = 16  # clips of which frames are kept, for a report to show
FILM_FRAMES = 16
_GB = 10**9


@dataclass(slots=True)
class Counts:
    """What was done: clips decoded, clips encoded, clips taken from the cache instead; images
    read (and encoded), and images taken from the cache."""

    decodes: int = 0
    encodes: int = 0
    cache_hits: int = 0
    images: int = 0
    image_cache_hits: int = 0


class FeatureSource:
    """Decoders, the frozen tower of a checkpoint, and the cache. For many threads at once: clips
    are decoded side by side while the tower encodes another.

    The tower takes one clip at a time. Passes of several small ones would save a millisecond each,
    but a clip's last bits would depend on its company, and so a run on how its threads were timed.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        video: config.Video,
        cfg: config.Features,
        device: str = "cpu",
        *,
        frames: bool = False,
    ) -> None:
        """frames: the tower learns, so frames are given out instead of features, and nothing is
        kept on disk. Raises ConfigError when the cache's folder cannot be written."""
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.spec = read_spec(checkpoint)
        self.tower = None if frames else Tower.load(checkpoint, device, dtype)
        self.decoders = Decoders(
            video, factor=self.spec.patch * self.spec.merge, count=cfg.decoders
        )
        self.cache = open_cache(cfg) if self.tower else None
        self._keys: Keys | None = None
        if self.cache and self.tower:
            self._keys = Keys(video, self.tower.fingerprint(), contents=self.cache)
        self._counts = Counts()
        self._one_at_a_time, self._lock = threading.Lock(), threading.Lock()
        self._films: dict[str, Clip] = {}

    def of(self, question: Question) -> tuple[Media, ...]:
        """Media of the question's video, then of each image; () for text alone.

        Raises DataError naming a file that cannot be used.
        """
        video = [question.video] if question.video else []
        clips = [self._kept("video", path, self._clip) for path in video]
        return (*clips, *(self._kept("image", path, self._image) for path in question.images))

    def film(self, question: Question) -> Clip | None:
        """Some frames of the question's video; None when it has none."""
        path = question.video
        if path is None:
            return None
        if path not in self._films:
            stored = self.cache.get(key) if self.cache and (key := self._film_key(path)) else None
            self._films[path] = unpack_film(stored) if stored else thinned(self._decode(path))
        return self._films[path]

    def counts(self) -> Counts:
        with self._lock:
            return replace(self._counts)

    def close(self) -> None:
        self.decoders.close()

    def _kept(self, modality: Modality, path: str, make: Callable[[str], Media]) -> Media:
        """From the cache, or made, and kept unless the file has changed meanwhile."""
        key = self._key(modality, path)
        if self.cache is None or key is None:
            return make(path)
        if stored := self.cache.get(key):
            self._count("cache_hits" if modality == "video" else "image_cache_hits")
            return unpack_features(stored)
        made = make(path)
        if isinstance(made, Features) and key == self._key(modality, path):
            self.cache.put(key, *pack_features(made))
        return made

    def _key(self, modality: Modality, path: str) -> str | None:
        """None without a cache, and for a file that cannot be read: its decoder says why not."""
        try:
            return self._keys.of(modality, path) if self._keys else None
        except OSError:
            return None

    def _film_key(self, path: str) -> str | None:
        key = self._key("video", path)
        return f"{key}-film" if key else None

    def _clip(self, path: str) -> Media:
        clip = self._decode(path)
        self._remember(path, clip)
        return self._seen(Frames.of_clip(clip, self.spec))

    def _decode(self, path: str) -> Clip:
        clip = self.decoders.clip(path)
        self._count("decodes")
        return clip

    def _image(self, path: str) -> Media:
        [image] = self.decoders.images([path])
        self._count("images")
        return self._seen(Frames.of_image(image, self.spec))

    def _seen(self, item: Frames) -> Media:
        """What the tower makes of it; the frames themselves where it learns."""
        if self.tower is None:
            return item
        with self._one_at_a_time:
            [features] = self.tower.encode([item])
        if item.modality == "video":
            self._count("encodes")
        return features

    def _remember(self, path: str, clip: Clip) -> None:
        """Keep frames of the first clips, on disk too: a later run may find features there and
        decode nothing."""
        with self._lock:
            if len(self._films) >= FILMS:
                return
            film = self._films[path] = thinned(clip)
        if self.cache and (key := self._film_key(path)):
            self.cache.put(key, *pack_film(film))

    def _count(self, what: str) -> None:
        with self._lock:
            setattr(self._counts, what, getattr(self._counts, what) + 1)


def open_cache(cfg: config.Features) -> DiskCache | None:
    """The cache that the settings ask for. Raises ConfigError when it cannot be written."""
    if not cfg.cache_gb:
        return None
    return DiskCache(cfg.cache_dir or default_folder(), int(cfg.cache_gb * _GB))


def thinned(clip: Clip) -> Clip:
    """At most FILM_FRAMES of the clip's frames, evenly spread, in memory of their own."""
    count = len(clip.frames)
    chosen = np.linspace(0, count - 1, min(count, FILM_FRAMES)).round().astype(int)
    return replace(clip, frames=clip.frames[chosen], seconds=clip.seconds[chosen])
