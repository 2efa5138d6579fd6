"""The encoder encodes each clip it is asked for, shares its features, and names what it cannot."""

from __future__ import annotations

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from ray.experimental import get_object_locations

from actors.encoder import Encoder
from veripo_ray import config
from veripo_ray.errors import DataError
from veripo_ray.policy.tower import Tower
from veripo_ray.records import Kind, Question
from veripo_ray.tinyworld.render import write_mp4
from veripo_ray.tinyworld.world import scenes

VIDEO = config.Video(fps=4.0, min_pixels=784)
FEATURES = config.Features(cache_gb=0)


@pytest.fixture(scope="module")
def encoder(ray_session, tiny_checkpoint):
    handle = Encoder.actor(FEATURES).remote(str(tiny_checkpoint), VIDEO, FEATURES, "cpu")
    assert ray.get(handle.ping.remote(), timeout=120)["encodes"] == 0
    yield handle
    ray.kill(handle)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_mp4(folder / "good.mp4", next(scenes(0, held_out=False)))
    (folder / "broken.mp4").write_bytes((folder / "good.mp4").read_bytes()[:900])
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(noise).save(folder / "image.png")
    return folder


def question(**media) -> Question:
    return Question(id="q", text="moves ?", kind=Kind.NUMERIC, gold="3", **media)


def call(encoder, *asked):
    """Reference to what is said of the questions, and a list of those to their features."""
    receipts, *features = encoder.encode.options(num_returns=1 + len(asked)).remote(asked)
    return receipts, features


def encode(encoder, asked):
    receipts, features = call(encoder, asked)
    return ray.get(receipts, timeout=60)[0], ray.get(features[0], timeout=60)


def test_features_of_a_video_and_of_images_come_back_in_order(encoder, media, tiny_checkpoint):
    images = (str(media / "image.png"),) * 2
    before = ray.get(encoder.counts.remote(), timeout=60)
    size, features = encode(encoder, question(video=str(media / "good.mp4"), images=images))
    after = ray.get(encoder.counts.remote(), timeout=60)
    assert [item.modality for item in features] == ["video", "image", "image"]
    assert size == sum(item.values.nbytes for item in features)
    assert features[0].grid_thw == (16, 2, 4)  # 8 seconds at 4 frames a second, in pairs
    assert features[0].seconds_per_grid == 0.5
    assert np.array_equal(features[1].values, features[2].values)
    assert {name: after[name] - before[name] for name in after} == {
        "decodes": 1,
        "encodes": 1,
        "cache_hits": 0,
        "images": 2,
        "image_cache_hits": 0,
    }


def test_features_are_the_towers_own(encoder, media, tiny_checkpoint):
    asked = question(video=str(media / "good.mp4"))
    _, (remote,) = encode(encoder, asked)
    here = Encoder(str(tiny_checkpoint), VIDEO, FEATURES)
    _, (local,) = here.encode([asked])
    clip = here.source.decoders.clip(asked.video)
    here.source.close()
    own = Tower.load(tiny_checkpoint, "cpu", torch.float32).encode_clip(clip)
    assert np.abs(remote.values - own.values).max() < 1e-6
    assert np.array_equal(local.values, own.values)


def test_features_lie_in_the_object_store_and_whoever_gets_them_shares_them(encoder, media):
    """However small: results that Ray put into the caller's memory would be the coordinator's."""
    receipt, (features,) = call(encoder, question(video=str(media / "good.mp4")))
    assert ray.get(receipt, timeout=60)[0] < 100_000
    ray.wait([features], timeout=60, fetch_local=False)  # the receipt is told a moment before
    assert get_object_locations([features])[features]["node_ids"]
    assert not get_object_locations([receipt])[receipt]["node_ids"]
    (first,), (again,) = ray.get(features, timeout=60), ray.get(features, timeout=60)
    assert not first.values.flags.writeable
    assert np.shares_memory(first.values, again.values)


def test_a_text_only_question_has_no_features(encoder):
    assert encode(encoder, question()) == (0, ())


@pytest.mark.parametrize(
    ("kind", "name"), [("video", "broken.mp4"), ("video", "absent.mp4"), ("images", "broken.mp4")]
)
def test_media_that_cannot_be_used_are_named_and_counted_nowhere(encoder, media, kind, name):
    path = str(media / name)
    before = ray.get(encoder.counts.remote(), timeout=60)
    error, features = encode(encoder, question(**{kind: path if kind == "video" else (path,)}))
    assert isinstance(error, DataError)
    assert name in error.problem
    assert features == ()
    assert ray.get(encoder.counts.remote(), timeout=60) == before


def test_a_broken_file_costs_the_other_questions_of_its_call_nothing(encoder, media):
    paths = [str(media / name) for name in ("good.mp4", "broken.mp4", "good.mp4")]
    receipts, features = call(encoder, *(question(video=path) for path in paths))
    first, broken, last = ray.get(receipts, timeout=60)
    assert first == last > 0
    assert isinstance(broken, DataError)
    good, _, again = ray.get(features, timeout=60)
    assert np.array_equal(good[0].values, again[0].values)


def test_a_film_is_kept_for_the_report(encoder, media):
    asked = question(video=str(media / "good.mp4"))
    encode(encoder, asked)
    before = ray.get(encoder.counts.remote(), timeout=60)
    film = ray.get(encoder.film.remote(asked), timeout=60)
    assert film.frames.shape[1:] == (28, 56, 3)
    assert ray.get(encoder.film.remote(question()), timeout=60) is None
    assert ray.get(encoder.counts.remote(), timeout=60) == before
