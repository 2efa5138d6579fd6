"""A team whose engines answer at once, so that what is left is the cost of leading it.

Rollout workers are lanes: each is called, streamed from and dealt to as a worker of its own, but
HOSTED of them share a process, since 256 processes would not fit a small machine.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from _synthetic import RESPONSE, SyntheticEncoder

from actors.dealing import Dealt, handed_over, requests
from actors.team import Team
from veripo_ray import codec
from veripo_ray.policy.prompting import expand
from veripo_ray.policy.qwen_vl import load_tokenizer, read_spec
from veripo_ray.records import Group, Pair, Rollout
from veripo_ray.sampler import Sampled, SampleRequest
from veripo_ray.weights import Manifest, Snapshot

HOSTED = 16
COSTS, SINGLY = "costs.jsonl", "singly"
PADDING = 200  # tokens a response, about, which the journal, the learner and the verifier carry


class Host:
    """HOSTED rollout workers: every one of their calls gets a thread of its own."""

    def __init__(self, checkpoint: str, *, holds: bool) -> None:
        self._tokenizer, self._spec = load_tokenizer(checkpoint), read_spec(checkpoint)
        self._holds = holds
        self._rollout = functools.cache(self._written)
        self._version = self._coming = 0

    def ping(self) -> int:
        return self._version

    def begin_update(self, manifest: Manifest) -> None:
        self._coming = manifest.version

    def take(self, bucket: Snapshot) -> None: ...

    def finish_update(self) -> None:
        self._version = self._coming

    def sample(
        self,
        share: Sequence[Dealt],
        dealer: Any = None,
        hand: str = "",
        *,
        n: int,
        hold_s: float = 0.0,
        **_: Any,
    ) -> Iterator[list[Sampled]]:
        steps = self._steps(requests(share, dealer, hand), n)
        yield from handed_over(steps, hold_s if self._holds else 0.0)

    def _steps(self, asked: Iterator[SampleRequest], n: int) -> Generator[list[Sampled]]:
        for request in asked:
            number = int(request.id.rsplit("-", 1)[1])
            prompt = expand(request.prompt_ids, request.features, self._spec, self._tokenizer)
            rollouts = tuple(self._rollout(number % 4, wrong, self._version) for wrong in range(n))
            yield [Sampled(request.id, prompt, rollouts)]

    def _written(self, number: int, wrong: int, version: int) -> Rollout:
        letters = "ABCD"
        colour = ("red", "green", "blue", "yellow")[number]
        letter = letters[(number + bool(wrong)) % 4]
        text = RESPONSE.format(colour=colour, letter=letter, said=letter)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = np.array([*ids] * (PADDING // len(ids)) + [self._spec.stop_ids[0]], np.int32)
        logprobs = np.full(len(ids), -1.0, np.float32)
        return Rollout(
            text=text, token_ids=ids, logprobs=logprobs, finish_reason="stop",
            policy_version=version,
        )  # fmt: skip


class Rank:
    """A learner that has nothing to learn, and a reference that thinks everything equally likely;
    it reads what it is given."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def ping(self) -> int:
        return 0

    def address(self) -> tuple[str, int]:
        return "nowhere", 0

    def join(self, address: tuple[str, int]) -> None: ...

    def sees(self, _: str) -> bool:
        return True

    def begin_update(self, manifest: Manifest) -> None: ...

    def take(self, bucket: Snapshot) -> None: ...

    def finish_update(self) -> None: ...

    def manifest(self, version: int) -> Manifest:
        return Manifest(version, "float32", {"weight": (1000,)})

    def weights(self, _: int) -> Iterator[Snapshot]:
        yield {"weight": np.zeros(1000, np.float32)}

    def grpo_step(self, groups: Sequence[ray.ObjectRef], *_: object) -> dict[str, float]:
        ray.get(groups[0])
        return {"loss": 0.0, "logprob_gap_max": 0.0}

    dpo_step = grpo_step

    def logprobs(self, groups: Sequence[Group], _: object) -> dict[str, list[np.ndarray]]:
        return {group.id: [rollout.logprobs for rollout in group.rollouts] for group in groups}

    def attach(self, shard: np.ndarray, _: object) -> np.ndarray:
        pairs = codec.unpack_many(shard.data, Pair)
        return codec.to_array(codec.pack_many([_scored(pair) for pair in pairs]))

    def save(self, folder: str) -> None:
        (Path(folder) / "hf").mkdir(parents=True, exist_ok=True)


def _scored(pair: Pair) -> Pair:
    sides = {
        side: getattr(pair, side).model_copy(update={"reference_logprob": -1.0})
        for side in ("chosen", "rejected")
    }
    return pair.model_copy(update=sides)


class _Lane:
    """One worker: the calls of its host's handle, by a name of its own."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self.host, name)


class FakeTeam(Team):
    """The product's team, dealing, syncing and calls; its actors are those of above. Notes CPU and
    wall seconds of the process that leads, after every weight sync, and the CPU seconds of that."""

    Encoder = SyntheticEncoder

    def _worker(self, number: int, *_: object, **__: object) -> Any:
        if number % HOSTED == 0:
            options = {"num_cpus": 0, "max_concurrency": 2 * HOSTED}
            holds = not (self.run.output.parent / SINGLY).exists()
            self._host = (
                ray.remote(Host).options(**options).remote(str(self.checkpoint), holds=holds)
            )
        return _Lane(self._host)

    def _actor(self, *_: object) -> Any:
        return ray.remote(Rank).options(num_cpus=0)

    def end_worker(self, number: int, worker: Any) -> None:
        if number % HOSTED == 0:
            ray.kill(worker.host)

    async def publish(self, version: int) -> None:
        before = time.process_time()
        await super().publish(version)
        cpu = time.process_time()
        with (self.run.output / COSTS).open("a") as file:
            file.write(json.dumps([cpu, time.monotonic(), cpu - before]) + "\n")
