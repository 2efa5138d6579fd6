"""A trained policy multiplies rounding by a hundred and more where it is undecided: rollout worker
and learner still agree, because they round alike.

One module, so that the engine and its process group end before other tests begin.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch

from veripo_ray.policy.prompting import build_prompt
from veripo_ray.sampler import SampleRequest
from veripo_ray.tinyworld import world
from veripo_ray.tinyworld.vocabulary import TASKS

AVX512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@pytest.fixture(scope="module")
def checkpoint(shipped_checkpoint: Path) -> Path:
    return shipped_checkpoint


def questions(sampler, policy, media) -> list[SampleRequest]:
    """Three of each task, about clips that show something else half of the time."""
    rng, requests = Random(0), []
    for number, scene in enumerate(islice(world.scenes(0, held_out=False), 3)):
        for task in TASKS:
            asked = world.ask(scene, task, rng)
            question = world.as_question(asked, asked.gold(scene), id=f"{number}-{task}", video="-")
            ids = build_prompt(policy.tokenizer, question, "tinyworld").ids
            clip = media["video" if number % 2 else "slow"]
            requests.append(SampleRequest(question.id, ids, (clip,)))
    return requests


@pytest.mark.skipif(not AVX512, reason="without AVX-512 vLLM computes another exp than torch")
def test_rollouts_and_learner_round_alike(sampler, policy, media, gap):
    requests = {request.id: request for request in questions(sampler, policy, media)}
    groups = list(sampler.sample(list(requests.values()), n=16, temperature=1.0, max_tokens=64))
    logprobs = [lp for group in groups for rollout in group.rollouts for lp in rollout.logprobs]
    assert sum(-3 < lp < -0.1 for lp in logprobs) > 500  # undecided tokens
    assert max(gap(group, requests[group.id]) for group in groups) <= 1e-6
