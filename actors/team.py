"""The run's actors as one team: who they are, where they start, and how the loop calls them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.calls import late, result_of, results_of
from actors.encoder import Encoder
from actors.feed import Task
from actors.learner import LearnerRank
from actors.pairing import as_shard
from actors.reference import Reference
from actors.rollout import RolloutWorker
from veripo_ray import codec, config
from veripo_ray.errors import ResourceError
from veripo_ray.learner import TrainGroup, TrainPair
from veripo_ray.objectives.advantages import group_advantages
from veripo_ray.policy.prompting import build_prompt
from veripo_ray.policy.qwen_vl import load_tokenizer, read_spec
from veripo_ray.precision import gap_error
from veripo_ray.records import Group, Pair, Question
from veripo_ray.video.decode import Clip

START_TIMEOUT_S = 600.0  # a 7B checkpoint from a slow disk; a hang is an error, not a wait


class Team:
    """Encoder, rollout workers, learner ranks and reference of one run.

    References to features and weights pass through here; their data never does.
    """

    Encoder: type = Encoder
    RolloutWorker: type = RolloutWorker

    def __init__(self, run: config.Run, checkpoint: Path) -> None:
        self.run, self.checkpoint = run, checkpoint
        self.tokenizer = load_tokenizer(checkpoint)
        self.spec = read_spec(checkpoint)

    @classmethod
    async def start(
        cls,
        run: config.Run,
        checkpoint: Path,
        *,
        resumed: Path | None,
        reference: Path | None,
        version: int,
    ) -> Team:
        """Start every actor at once and wait until all have answered.

        resumed: the checkpoint to go on from, of weights `version`; reference: what the reference
        holds then.
        Raises ResourceError naming who did not answer in time.
        """
        weights = resumed / "hf" if resumed else checkpoint
        team = cls(run, checkpoint)
        team._create(weights, reference or checkpoint, version)
        await team._answer(team._everyone())
        await team._meet(resumed)
        return team

    def _create(self, weights: Path, reference: Path, version: int) -> None:
        run, device = self.run, self.run.device
        self.encoder = _actor(self.Encoder, device, 1).remote(
            str(self.checkpoint), run.video, device
        )
        self.workers = [
            _actor(self.RolloutWorker, device, run.rollout.tensor_parallel).remote(
                str(weights),
                run.rollout,
                device=device,
                seed=run.seed + number,
                version=version,
                tower=run.learner.train_vision,
            )
            for number in range(run.rollout.workers)
        ]
        self.ranks = [
            _actor(LearnerRank, device, 1).remote(
                str(self.checkpoint),  # not the resumed one, which will be pruned
                run.learner,
                device=device,
                seed=run.seed,
                rank=rank,
                world_size=run.learner.ranks,
                temperature=run.rollout.temperature,
                max_tokens=run.rollout.max_tokens,
            )
            for rank in range(run.learner.ranks)
        ]
        self.reference = _actor(Reference, device, 1).remote(
            str(reference), run.learner, device=device, temperature=run.rollout.temperature
        )

    def _everyone(self) -> dict[str, Any]:
        workers = {f"rollout worker {n}": worker for n, worker in enumerate(self.workers)}
        ranks = {f"learner rank {n}": rank for n, rank in enumerate(self.ranks)}
        return {"encoder": self.encoder, **workers, **ranks, "reference": self.reference}

    async def _answer(self, actors: Mapping[str, Any]) -> None:
        pings = {name: actor.ping.remote() for name, actor in actors.items()}
        waits = {
            name: asyncio.ensure_future(result_of(ping, START_TIMEOUT_S, name))
            for name, ping in pings.items()
        }
        done, pending = await asyncio.wait(
            waits.values(), timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_EXCEPTION
        )
        for task in done:
            task.result()
        if pending:
            silent = ", ".join(name for name, task in waits.items() if task in pending)
            raise ResourceError(
                f"not started within {START_TIMEOUT_S:g} s: {silent}",
                fix="see `ray status` for what the cluster is short of, or the actors' logs",
            )

    async def _meet(self, resumed: Path | None) -> None:
        """Learner ranks find each other, load the model, and catch up with a checkpoint."""
        address = await self._one(self.ranks[0].address.remote(), "learner rank 0's address")
        await self._all([rank.join.remote(address) for rank in self.ranks], "joining the ranks")
        if resumed:
            loads = [rank.load.remote(str(resumed)) for rank in self.ranks]
            await self._all(loads, "loading the learner's checkpoint")

    async def _one(self, reference: Any, what: str) -> Any:
        return await result_of(reference, self.run.call_timeout_s, what)

    async def _all(self, references: Sequence[Any], what: str) -> list[Any]:
        return await results_of(references, self.run.call_timeout_s, what)

    # --- questions

    async def encode(self, question: Question) -> Any:
        """A reference to the question's features; DataError when its media cannot be used."""
        if not (question.video or question.images):
            return ray.put(())
        receipt, features = self.encoder.encode.options(num_returns=2).remote(question)
        await self._one(receipt, f"encoding the media of question {question.id!r}")
        return features

    async def film(self, question: Question) -> Clip | None:
        """Some frames of the question's video, if the encoder kept them."""
        return await self._one(self.encoder.film.remote(question), "a film")

    async def counts(self) -> dict[str, int]:
        """Clips decoded and encoded so far, as the encoder counted them."""
        return await self._one(self.encoder.counts.remote(), "counting media")

    def prompt(self, question: Question) -> np.ndarray:
        return build_prompt(self.tokenizer, question, self.run.prompt.template).ids

    def tokenize(self, text: str) -> np.ndarray:
        """Ids [R] int32 of an edited response, without a stop token."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    # --- sampling

    def explore(self, tasks: Sequence[Task], prefix: str) -> AsyncIterator[Group]:
        """Groups of G rollouts, each as soon as it is finished."""
        return self._sample(tasks, prefix, self.workers, **self._exploring(prefix))

    def _exploring(self, prefix: str) -> dict[str, Any]:
        rollout = self.run.rollout
        return {
            "n": rollout.group_size,
            "temperature": rollout.temperature,
            "max_tokens": rollout.max_tokens,
            "seed": self._seed(prefix),
        }

    def evaluate(
        self, tasks: Sequence[Task], cfg: config.Evaluation, prefix: str
    ) -> AsyncIterator[Group]:
        """One response a question."""
        sampling = {
            "n": 1,
            "temperature": cfg.temperature,
            "max_tokens": cfg.max_tokens,
            "repetition_penalty": cfg.repetition_penalty,
            "seed": self._seed(prefix),
        }
        return self._sample(tasks, prefix, self.workers, **sampling)

    def _seed(self, prefix: str) -> int:
        """Equal for the same work of the same run: what is done again is sampled alike."""
        return zlib.crc32(f"{self.run.seed}/{prefix}".encode())

    async def _sample(
        self, tasks: Sequence[Task], prefix: str, workers: Sequence[Any], **sampling: Any
    ) -> AsyncIterator[Group]:
        """Deal the tasks out to the workers and merge their streams."""
        questions = {task.question.id: task.question for task in tasks}
        results: asyncio.Queue[Any] = asyncio.Queue()
        shares = [tasks[n :: len(workers)] for n in range(len(workers))]
        readers = [
            asyncio.create_task(self._read(worker, share, sampling, results))
            for worker, share in zip(workers, shares, strict=True)
            if share
        ]
        try:
            for _ in tasks:
                sampled = await _first(results, readers, self.run.call_timeout_s)
                yield Group(
                    id=f"{prefix}.{sampled.id}",
                    question=questions[sampled.id],
                    prompt_ids=sampled.prompt_ids,
                    rollouts=sampled.rollouts,
                )
        finally:
            for reader in readers:
                reader.cancel()

    async def _read(
        self,
        worker: Any,
        share: Sequence[Task],
        sampling: Mapping[str, Any],
        results: asyncio.Queue[Any],
    ) -> None:
        """Bring one worker's groups to the queue as they finish."""
        stream = worker.sample.options(num_returns="streaming").remote(
            [task.question.id for task in share],
            [task.prompt_ids for task in share],
            [task.features for task in share],
            **sampling,
        )
        async for reference in stream:
            await results.put(await self._one(reference, "sampling a group"))

    # --- learning

    async def grpo_step(
        self,
        groups: Sequence[Group],
        features: Mapping[str, Any],
        phase: config.Grpo,
        max_gap: float | None,
    ) -> dict[str, float]:
        """One optimiser step on all these groups; every rank takes its share of them."""
        wanted = {group.id: features[group.id] for group in groups}
        reference = None
        if phase.kl_coef:
            call = self.reference.logprobs.remote(groups, wanted)
            reference = await self._one(call, "scoring by the reference")
        rows = ray.put([_train_group(group, phase, reference) for group in groups])
        steps = [rank.grpo_step.remote([rows], wanted, phase, max_gap) for rank in self.ranks]
        return (await self._all(steps, "a grpo step"))[0]

    async def dpo_step(
        self, pairs: Sequence[Pair], features: Mapping[str, Any], phase: config.Dpo
    ) -> dict[str, float]:
        rows = ray.put([_train_pair(pair) for pair in pairs])
        steps = [rank.dpo_step.remote([rows], features, phase) for rank in self.ranks]
        return (await self._all(steps, "a dpo step"))[0]

    async def attach_reference(
        self, pairs: Sequence[Pair], features: Mapping[str, Any]
    ) -> list[Pair]:
        """The pairs with reference log-probabilities; shards of msgpack both ways."""
        call = self.reference.attach.remote(as_shard(pairs), features)
        shard = await self._one(call, "scoring a shard of pairs by the reference")
        return codec.unpack_many(memoryview(shard), Pair)

    # --- weights

    async def publish(self, version: int) -> None:
        """The learner's weights to every rollout worker, through the object store."""
        weights = await self._snapshot(version)
        loads = [worker.load_weights.remote(version, [weights]) for worker in self.workers]
        await self._all(loads, "the weight sync to the rollout workers")

    async def refit_reference(self, version: int) -> None:
        weights = await self._snapshot(version)
        load = self.reference.load_weights.remote(version, [weights])
        await self._one(load, "the weight sync to the reference")

    async def _snapshot(self, version: int) -> Any:
        """A reference to the weights that train, as rank 0 returned them. All ranks take part,
        since a sharded learner gathers."""
        answers = [rank.weights.options(num_returns=2).remote(version) for rank in self.ranks]
        await self._all([receipt for receipt, _ in answers], "gathering the learner's weights")
        return answers[0][1]

    async def measure_gap(self, task: Task, limit: float) -> float:
        """Every rollout worker samples one group and the learner scores it under the same version:
        the largest difference of a token's log-probability. PrecisionError above `limit`."""
        gaps = [await self._gap(worker, task) for worker in self.workers]
        if not max(gaps) <= limit:
            raise gap_error(task.question.id, max(gaps), limit)
        return max(gaps)

    async def _gap(self, worker: Any, task: Task) -> float:
        sampling = self._exploring("gap")
        (group,) = [group async for group in self._sample([task], "gap", [worker], **sampling)]
        features = {group.id: task.features}
        calls = [rank.logprobs.remote([group], features) for rank in self.ranks]
        scores = await self._all(calls, "scoring by the learner")
        pairs = zip(scores[0][group.id], group.rollouts, strict=True)
        return max(float(np.abs(ours - rollout.logprobs).max()) for ours, rollout in pairs)

    async def save(self, folder: Path) -> None:
        saves = [rank.save.remote(str(folder)) for rank in self.ranks]
        await self._all(saves, "writing the learner's checkpoint")

    def close(self) -> None:
        for actor in self._everyone().values():
            ray.kill(actor)


def _actor(kind: type, device: str, gpus: int) -> Any:
    """A Ray actor of the class; on a GPU cluster with GPUs of its own."""
    return ray.remote(kind).options(num_cpus=1, num_gpus=gpus if device == "cuda" else 0)


async def _first(
    results: asyncio.Queue[Any], readers: Sequence[asyncio.Task[None]], limit_s: float
) -> Any:
    """The next finished group; a worker that failed raises here instead of leaving us waiting."""
    getting = asyncio.create_task(results.get())
    working: set[asyncio.Task[Any]] = {getting, *readers}
    while not getting.done():
        done, working = await asyncio.wait(
            working, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            raise late("sampling a group", limit_s)
        for task in done:
            task.result()
    return getting.result()


def _train_group(
    group: Group, phase: config.Grpo, reference: Mapping[str, Sequence[np.ndarray]] | None
) -> TrainGroup:
    rewards = [reward.total for reward in group.rewards]
    return TrainGroup(
        id=group.id,
        prompt_ids=group.prompt_ids,
        responses=[rollout.token_ids for rollout in group.rollouts],
        old_logprobs=[rollout.logprobs for rollout in group.rollouts],
        advantages=group_advantages(rewards, phase.advantage),
        ref_logprobs=reference[group.id] if reference else None,
    )


def _train_pair(pair: Pair) -> TrainPair:
    chosen, rejected = pair.chosen.reference_logprob, pair.rejected.reference_logprob
    assert chosen is not None, f"pair {pair.id} came past the reference"
    assert rejected is not None, f"pair {pair.id} came past the reference"
    return TrainPair(
        id=pair.id,
        prompt_ids=pair.prompt_ids,
        chosen=pair.chosen.token_ids,
        rejected=pair.rejected.token_ids,
        reference_chosen=chosen,
        reference_rejected=rejected,
    )
