"""A clip is decoded and encoded once, whatever runs come after, as long as it is the same clip."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from veripo_ray import config
from veripo_ray.errors import DataError
from veripo_ray.features import FeatureSource
from veripo_ray.features.source import FILM_FRAMES
from veripo_ray.policy.media import Frames
from veripo_ray.records import Kind, Question
from veripo_ray.tinyworld.render import write_mp4
from veripo_ray.tinyworld.world import scenes

VIDEO = config.Video(fps=4.0, min_pixels=784)
CLIPS = 6


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for number, scene in zip(range(CLIPS), scenes(0, held_out=False), strict=False):
        write_mp4(folder / f"{number}.mp4", scene)
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(noise).save(folder / "image.png")
    return folder


def asked(*media: Path) -> Question:
    video = next((str(path) for path in media if path.suffix == ".mp4"), None)
    images = tuple(str(path) for path in media if path.suffix == ".png")
    return Question(id="q", text="?", kind=Kind.NUMERIC, gold="3", video=video, images=images)


@pytest.fixture
def source(tiny_checkpoint: Path, tmp_path: Path):
    """A new source on the same cache with every call; settings may be changed."""
    opened: list[FeatureSource] = []

    def make(video: config.Video = VIDEO, frames: bool = False, **features) -> FeatureSource:
        cfg = config.Features(cache_dir=tmp_path / "cache", **features)
        opened.append(FeatureSource(tiny_checkpoint, video, cfg, frames=frames))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


Source = Callable[..., FeatureSource]


def done(source: FeatureSource) -> dict[str, int]:
    """What was counted, without zeros."""
    return {name: count for name, count in asdict(source.counts()).items() if count}


def test_what_one_run_has_encoded_the_next_neither_decodes_nor_encodes(
    source: Source, media: Path
) -> None:
    question = asked(media / "0.mp4", media / "image.png")
    cold, warm = source(), source()
    first = cold.of(question)
    assert done(cold) == {"decodes": 1, "encodes": 1, "images": 1}
    again = warm.of(question)
    assert done(warm) == {"cache_hits": 1, "image_cache_hits": 1}
    for ours, theirs in zip(again, first, strict=True):
        assert np.array_equal(ours.values, theirs.values)
        assert ours.grid_thw == theirs.grid_thw
        assert ours.seconds_per_grid == theirs.seconds_per_grid
        assert ours.timestamps == theirs.timestamps
    assert first[0].timestamps


def test_many_threads_make_what_one_makes(source: Source, media: Path) -> None:
    questions = [asked(media / f"{n}.mp4") for n in range(CLIPS)]
    many, one = source(cache_gb=0, decoders=3), source(cache_gb=0, decoders=1)
    with ThreadPoolExecutor(CLIPS) as threads:
        made = list(threads.map(many.of, questions))
    for question, (features,) in zip(questions, made, strict=True):
        assert np.array_equal(features.values, one.of(question)[0].values)
    assert done(many) == {"decodes": CLIPS, "encodes": CLIPS}


def test_without_a_cache_nothing_is_written(source: Source, media: Path, tmp_path: Path) -> None:
    bare = source(cache_gb=0)
    for _ in range(2):
        bare.of(asked(media / "0.mp4"))
    assert done(bare) == {"decodes": 2, "encodes": 2}
    assert not (tmp_path / "cache").exists()


def test_for_a_tower_that_learns_frames_are_given_out_and_nothing_is_kept_on_disk(
    source: Source, media: Path, tmp_path: Path
) -> None:
    question = asked(media / "0.mp4", media / "image.png")
    frozen, learns = source(cache_gb=0), source(frames=True)
    frames = learns.of(question)
    assert all(isinstance(item, Frames) for item in frames)
    assert done(learns) == {"decodes": 1, "images": 1}
    assert not (tmp_path / "cache").exists()
    made = frozen.of(question)
    for ours, theirs in zip(frozen.tower.encode(frames[:1]), made[:1], strict=True):
        assert np.array_equal(ours.values, theirs.values)
        assert ours.timestamps == theirs.timestamps


def test_other_sampling_or_other_bytes_are_encoded_anew(
    source: Source, media: Path, tmp_path: Path
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes((media / "0.mp4").read_bytes())
    source().of(asked(path))
    slower = source(VIDEO.model_copy(update={"fps": 2.0}))
    slower.of(asked(path))
    path.write_bytes((media / "1.mp4").read_bytes())
    changed = source()
    changed.of(asked(path))
    assert done(slower) == done(changed) == {"decodes": 1, "encodes": 1}
    moved = source()
    moved.of(asked(media / "1.mp4"))
    assert done(moved) == {"cache_hits": 1}


def test_a_damaged_file_of_the_cache_is_made_again(
    source: Source, media: Path, tmp_path: Path
) -> None:
    question = asked(media / "0.mp4")
    (first,) = source().of(question)
    for path in (tmp_path / "cache").glob("??/*"):
        path.write_bytes(path.read_bytes()[:-100])
    mended = source()
    (again,) = mended.of(question)
    assert np.array_equal(again.values, first.values)
    assert done(mended) == {"decodes": 1, "encodes": 1}
    after = source()
    after.of(question)
    assert done(after) == {"cache_hits": 1}


def test_a_file_that_changes_while_it_is_read_is_not_kept_under_its_old_content(
    source: Source, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes((media / "0.mp4").read_bytes())
    victim = source()
    encode = victim.tower.encode

    def encode_and_change(items):
        path.write_bytes((media / "1.mp4").read_bytes())
        return encode(items)

    monkeypatch.setattr(victim.tower, "encode", encode_and_change)
    victim.of(asked(path))
    for original in ("0.mp4", "1.mp4"):
        after = source()
        after.of(asked(media / original))
        assert done(after) == {"decodes": 1, "encodes": 1}


@pytest.mark.parametrize("cache_gb", [0, 1])
def test_a_file_that_cannot_be_used_is_named_and_counted_nowhere(
    source: Source, media: Path, tmp_path: Path, cache_gb: int
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((media / "0.mp4").read_bytes()[:900])
    one = source(cache_gb=cache_gb)
    for path in (broken, tmp_path / "absent.mp4", tmp_path / "absent.png"):
        with pytest.raises(DataError, match=path.name):
            one.of(asked(path))
    assert done(one) == {}


def test_a_film_is_there_without_decoding_even_when_features_come_from_disk(
    source: Source, media: Path
) -> None:
    question = asked(media / "0.mp4")
    cold, warm = source(), source()
    cold.of(question)
    warm.of(question)
    films = [cold.film(question), warm.film(question)]
    assert done(cold) == {"decodes": 1, "encodes": 1}
    assert done(warm) == {"cache_hits": 1}
    assert films[0].frames.shape == (FILM_FRAMES, 28, 56, 3)
    assert np.array_equal(films[0].frames, films[1].frames)
    assert np.array_equal(films[0].seconds, films[1].seconds)
    assert films[0].seconds[0] == 0.0
    assert (np.diff(films[0].seconds) > 0).all()
    assert cold.film(asked(media / "image.png")) is None


def test_a_film_that_nobody_kept_is_decoded_and_counted(source: Source, media: Path) -> None:
    one = source(cache_gb=0)
    assert one.film(asked(media / "3.mp4")).frames.shape == (FILM_FRAMES, 28, 56, 3)
    assert done(one) == {"decodes": 1}
