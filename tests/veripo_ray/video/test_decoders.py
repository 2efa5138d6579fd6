"""Several decoders work side by side, and an error or a crash costs nobody else anything."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from veripo_ray.config import Video
from veripo_ray.errors import DataError
from veripo_ray.video.decode import Decoder
from veripo_ray.video.decoders import Decoders

CFG = Video(fps=2.0, min_pixels=784)


def test_many_threads_get_the_clips_they_asked_for(video, tmp_path) -> None:
    paths = [video(tmp_path / f"{n}.mp4", frames=16 + 8 * n) for n in range(6)]
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    decoders = Decoders(CFG, factor=28, count=2)
    with ThreadPoolExecutor(8) as threads, Decoder(CFG, factor=28) as one:
        broken = [threads.submit(decoders.clip, tmp_path / "broken.mp4") for _ in range(4)]
        clips = list(threads.map(decoders.clip, paths))
        for failed in broken:
            with pytest.raises(DataError, match=r"broken\.mp4"):
                failed.result(30)
        for path, clip in zip(paths, clips, strict=True):
            assert np.array_equal(clip.frames, one.clip(path).frames)
    started = [decoder for decoder in decoders._all if decoder._child]
    assert len(started) == 2
    decoders.close()
    assert all(decoder._child is None for decoder in decoders._all)


def test_one_thread_starts_one_process(video, tmp_path) -> None:
    path = video(tmp_path / "clip.mp4")
    decoders = Decoders(CFG, factor=28, count=4)
    for _ in range(3):
        decoders.clip(path)
    assert sum(decoder._child is not None for decoder in decoders._all) == 1
    decoders.close()
