"""A stream of synthetic questions, and the two actors that would take hours over 100,000 of them:
an encoder that makes small features from the question's number instead of decoding a clip, and a
rollout worker that writes two short responses, one right and one wrong, instead of sampling them.
Every group is learned from; in one of PAIRED the right response also follows from its thinking, so
that the verifier lets it be the better half of a pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from actors.dealing import Dealt, requests
from actors.encoder import Encoder
from actors.team import Team
from veripo_ray import config
from veripo_ray.features import Counts
from veripo_ray.policy.media import Features
from veripo_ray.policy.prompting import expand
from veripo_ray.policy.qwen_vl import load_tokenizer, read_spec
from veripo_ray.records import Question, Rollout
from veripo_ray.sampler import Sampled
from veripo_ray.weights import Manifest, Snapshot

CLIPS_A_FOLDER = 1000
COLOURS = ("red", "green", "blue", "yellow")
RESPONSE = "<think> f1 {colour} 1 f2 {colour} 2 so {said} </think> <answer> {letter} </answer>"
PAIRED = 10


def write_questions(path: Path, count: int, name: str) -> Path:
    """A JSONL of `count` questions, each with an (empty) clip of its own beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            clip = Path("clips", name, str(number // CLIPS_A_FOLDER), f"{number}.mp4")
            (path.parent / clip).parent.mkdir(parents=True, exist_ok=True)
            (path.parent / clip).touch()
            file.write(json.dumps(_row(f"{name}-{number}", number, str(clip))) + "\n")
    return path


def _row(id_: str, number: int, clip: str) -> dict[str, Any]:
    return {
        "id": id_,
        "text": f"after {COLOURS[number % 4]} ?",
        "kind": "choice",
        "gold": _letter(number),
        "options": COLOURS,
        "video": clip,
    }


class SyntheticEncoder(Encoder):
    """Features of 2 frames of 56 x 56 pixels: 4 rows, one placeholder each."""

    def __init__(self, checkpoint: str, *_: object, **__: object) -> None:
        self._spec, self._encoded = read_spec(checkpoint), 0

    def ping(self) -> dict[str, int]:
        return self.counts()

    def encode(self, questions: Sequence[Question]) -> tuple[Any, ...]:
        made = [self._features(question) for question in questions]
        return [features.values.nbytes for features in made], *((features,) for features in made)

    def _features(self, question: Question) -> Features:
        rng = np.random.default_rng(_number(question.id))
        grid = (1, 2 * self._spec.merge, 2 * self._spec.merge)
        shape = (self._spec.rows(grid), self._spec.feature_size)
        values = rng.standard_normal(shape, np.float32)
        self._encoded += 1
        return Features("video", values, grid, 1.0)

    def film(self, question: Question) -> None:
        """There is none to show."""

    def counts(self) -> dict[str, int]:
        return asdict(Counts(encodes=self._encoded))


class SyntheticRolloutWorker:
    """Fetches features and weights as the real one does. The log-probabilities that it records
    are those of a guess, so the limit of the gap must be set aside."""

    def __init__(self, checkpoint: str, _: config.Rollout, *, version: int, **__: object) -> None:
        self._tokenizer, self._spec = load_tokenizer(checkpoint), read_spec(checkpoint)
        self._version = version

    def ping(self) -> int:
        return self._version

    def sample(
        self, share: Sequence[Dealt], dealer: Any = None, name: str = "", *, n: int, **_: Any
    ) -> Iterator[list[Sampled]]:
        for request in requests(share, dealer, name):
            number = _number(request.id)
            slip = number % PAIRED != 0
            rollouts = tuple(self._rollout(number + wrong, slip) for wrong in range(n))
            prompt = expand(request.prompt_ids, request.features, self._spec, self._tokenizer)
            yield [Sampled(request.id, prompt, rollouts)]

    def _rollout(self, number: int, slip: bool) -> Rollout:
        letter, said = _letter(number), _letter(number + 2 * slip)
        text = RESPONSE.format(colour=COLOURS[number % 4], letter=letter, said=said)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = np.array([*ids, self._spec.stop_ids[0]], np.int32)
        return Rollout(
            text=text,
            token_ids=ids,
            logprobs=np.full(len(ids), -np.log(self._spec.vocab_size), np.float32),
            finish_reason="stop",
            policy_version=self._version,
        )

    def begin_update(self, manifest: Manifest) -> None:
        self._coming = manifest.version

    def take(self, bucket: Snapshot) -> None:
        pass

    def finish_update(self) -> int:
        self._version = self._coming
        return self._version


class SyntheticTeam(Team):
    """Real learner and reference; encoder and rollout worker of above."""

    Encoder = SyntheticEncoder
    RolloutWorker = SyntheticRolloutWorker


def _number(id_: str) -> int:
    return int(id_.rsplit("-", 1)[1])


def _letter(number: int) -> str:
    return "ABCD"[number % 4]
