"""One vLLM engine for all tests of the sampler, a real tiny video, and the learner's view of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from veripo_ray import config
from veripo_ray.policy.grouped import Packed, response_logprobs
from veripo_ray.policy.media import Features, Media
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.policy.tower import Tower
from veripo_ray.sampler import Sampled, Sampler, SampleRequest
from veripo_ray.tinyworld.render import write_mp4
from veripo_ray.tinyworld.world import scenes
from veripo_ray.video.decode import Decoder

CFG = config.Rollout(dtype="float32", max_model_len=256, max_num_seqs=16)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Path:
    """Whose rollouts a module tests; one for another family overrides it."""
    return tiny_checkpoint


@pytest.fixture(scope="module")
def sampler(checkpoint: Path) -> Iterator[Sampler]:
    made = Sampler(checkpoint, CFG, device="cpu", seed=0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def media(checkpoint: Path, tmp_path_factory) -> dict[str, Features]:
    """Features of two videos read from mp4 files at different rates, and of an image."""
    folder = tmp_path_factory.mktemp("clips")
    tower = Tower.load(checkpoint, "cpu", torch.float32)
    side = tower.policy.spec.patch * tower.policy.spec.merge
    made = {}
    both = zip(("video", "slow"), (1.0, 0.7), scenes(0, held_out=False), strict=False)
    for name, fps, scene in both:
        write_mp4(folder / f"{name}.mp4", scene)
        cfg = config.Video(fps=fps, min_pixels=side**2)
        with Decoder(cfg, factor=side) as decoder:
            made[name] = tower.encode_clip(decoder.clip(folder / f"{name}.mp4"))
    frame = np.random.default_rng(0).integers(0, 256, (2 * side, 3 * side, 3), np.uint8)
    return made | {"image": tower.encode_image(frame)}


@pytest.fixture(scope="module")
def request_of(sampler: Sampler) -> Callable[..., SampleRequest]:
    """request_of(id, media, seed, words): a prompt of random words around the given media."""
    spec = sampler.spec
    plain = [i for i in range(spec.vocab_size) if i not in (*spec.banned_ids, *spec.stop_ids)]
    pads = {modality: token for token, modality in spec.placeholders.items()}

    def make(
        id_: str, media: Sequence[Media] = (), seed: int = 0, words: int = 12
    ) -> SampleRequest:
        rng = np.random.default_rng(seed)
        ids = [rng.choice(plain, 3)]
        for item in media:
            ids += [[spec.vision_start, pads[item.modality], spec.vision_end], rng.choice(plain, 2)]
        ids += [rng.choice(plain, words)]
        return SampleRequest(id_, np.concatenate(ids).astype(np.int32), tuple(media))

    return make


@pytest.fixture
def policy(checkpoint: Path) -> QwenVL:
    """The policy as the learner holds it, with the checkpoint's weights."""
    return QwenVL.load(checkpoint, dtype=torch.float32, tower=False)


@pytest.fixture
def gap(policy: QwenVL) -> Callable[..., float]:
    """gap(group, request): the largest difference between a token's log-probability in the rollout
    and at the learner."""

    def measure(group: Sampled, request: SampleRequest, temperature: float = 1.0) -> float:
        responses = tuple(rollout.token_ids for rollout in group.rollouts)
        packed = Packed(group.prompt_ids, request.features, responses)
        with torch.no_grad():
            (scores,) = response_logprobs(policy, [packed], temperature=temperature)
        pairs = zip(scores, group.rollouts, strict=True)
        return max(float(np.abs(own.numpy() - rollout.logprobs).max()) for own, rollout in pairs)

    return measure
