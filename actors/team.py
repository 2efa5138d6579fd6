"""The run's actors as one team: who they are, where they start, and how the loop calls them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.calls import result_of, results_of
from actors.dealing import Dealer, Dealt
from actors.encoder import WAITING, Encoder
from actors.encoding import Encoded, Encoding
from actors.examples import train_group, train_pair
from actors.feed import Task
from actors.learner import LearnerRank
from actors.pairing import as_shard
from actors.reference import Reference
from actors.rollout import RolloutWorker
from actors.seats import Seats
from actors.syncing import WeightSync
from actors.turns import Turns
from actors.workers import Workers
from veripo_ray import codec, config
from veripo_ray.errors import LostError, ResourceError, StorageError
from veripo_ray.placement import Role
from veripo_ray.policy.folder import load_tokenizer
from veripo_ray.policy.prompting import build_prompts
from veripo_ray.precision import gap_error, largest_gap
from veripo_ray.records import Group, Pair, Question
from veripo_ray.video.decode import Clip

GAP_TOKENS = 64  # of a group sampled for the gap alone: enough to cross blocks of the KV cache
START_TIMEOUT_S = 600.0  # a 7B checkpoint from a slow disk; a hang is an error, not a wait


class Team:
    """Encoder, rollout workers, learner ranks and reference of one run.

    References to features and weights pass through here; their data never does.
    """

    Encoder: type[Encoder] = Encoder
    RolloutWorker: type = RolloutWorker
    seats: Seats
    tokenizer: Any

    def __init__(self, run: config.Run, checkpoint: Path, tell: Callable[[str], None]) -> None:
        self.run, self.checkpoint, self._tell = run, checkpoint, tell
        self._nothing = ray.put(())  # the features of all questions without media
        self._dealer = Dealer(run.rollout.max_num_seqs, run.call_timeout_s)
        self._sync = WeightSync(run.weights, run.transport, run.rollout.tensor_parallel)
        self._others: list[Any] = []  # besides the workers, as far as they have been started
        self._syncing = asyncio.Lock()
        self._version, self._published = 0, asyncio.Event()  # set while the learner has a version

    @classmethod
    async def start(
        cls,
        run: config.Run,
        checkpoint: Path,
        *,
        resumed: str | None,
        reference: str | None,
        version: int,
        tell: Callable[[str], None],
    ) -> Team:
        """Hold what the plan says, start every actor there and wait until all have answered.

        resumed: the checkpoint to go on from, of weights `version`; reference: what the reference
        holds then (folders or, where the run is kept at a URI, parts of that); tell: news for the
        user.
        Raises ResourceError naming what was not free, or who did not answer in time.
        """
        weights = f"{resumed}/hf" if resumed else str(checkpoint)
        team = cls(run, checkpoint, tell)
        team.seats = await Seats.take(run)
        try:
            await team._create(weights, reference or str(checkpoint), version)
            team.tokenizer = await asyncio.to_thread(load_tokenizer, checkpoint)  # meanwhile
            await team._ready(resumed, reference)
        except BaseException:
            team.close()
            raise
        team._is_published(version)
        team.workers.keep()
        return team

    async def _create(self, weights: str, reference: str, version: int) -> None:
        run, device = self.run, self.run.device
        self.workers = Workers(run.rollout, self, tell=self._tell)
        self._turns = Turns(run, self.workers.by_name)
        self.workers.begin([self._worker(n, weights, version) for n in range(run.rollout.workers)])
        if self._turns.shared:  # vLLM measures what is free: nobody else may move in meanwhile
            await self._answer(self.workers.by_name())
            await self._turns.begin()
        self.encoder = self.Encoder.actor(run.features, **self.seats.of(Role.ENCODER)).remote(
            str(self.checkpoint), run.video, run.features, device, frames=run.learner.train_vision
        )
        self._encoding = Encoding(self.encoder, run.features.decoders + WAITING, run.call_timeout_s)
        self.ranks = [
            self._actor(LearnerRank, Role.LEARNER, rank).remote(
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
        self.reference: Any = None  # with LoRA the ranks are the reference, too
        if not run.learner.lora:
            self.reference = self._actor(Reference, Role.REFERENCE).remote(
                reference,
                run.learner,
                device=device,
                temperature=run.rollout.temperature,
                rests=self._turns.shared,
            )
        self._others = [*filter(None, (self.encoder, *self.ranks, self.reference))]

    async def _ready(self, resumed: str | None, reference: str | None) -> None:
        """Everyone answers; ranks meet as soon as they do, since rollout workers take longest."""

        async def meet() -> None:
            await self._answer(self._ranks_by_name())
            await self._meet(resumed)
            await self._remember(reference)

        both = [
            asyncio.ensure_future(work) for work in (meet(), self._answer(self._all_but_ranks()))
        ]
        try:
            await asyncio.gather(*both)
        finally:
            for work in both:
                work.cancel()

    def _actor(self, kind: type, role: Role, number: int = 0) -> Any:
        return ray.remote(kind).options(**self.seats.of(role, number))

    def _worker(self, number: int, weights: str, version: int) -> Any:
        return self._actor(self.RolloutWorker, Role.ROLLOUT, number).remote(
            weights,
            self.run.rollout,
            device=self.run.device,
            seed=self.run.seed + number,
            version=version,
            tower=self.run.learner.train_vision,
            lora=self.run.learner.lora,
            transport=self.run.transport,
            **({"sleeps": True} if self._turns.shared else {}),
        )

    def _all_but_ranks(self) -> dict[str, Any]:
        reference = {"reference": self.reference} if self.reference else {}
        return {"encoder": self.encoder, **self.workers.by_name(), **reference}

    def _ranks_by_name(self) -> dict[str, Any]:
        return {f"learner rank {n}": rank for n, rank in enumerate(self.ranks)}

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

    async def _meet(self, resumed: str | None) -> None:
        """Learner ranks find each other, load the model, and catch up with a checkpoint."""
        await self._require_shared_output()
        address = await self._one(self.ranks[0].address.remote(), "learner rank 0's address")
        await self._all([rank.join.remote(address) for rank in self.ranks], "joining the ranks")
        if resumed:
            loads = [rank.load.remote(resumed) for rank in self.ranks]
            await self._all(loads, "loading the learner's checkpoint")

    async def _remember(self, reference: str | None) -> None:
        """Ranks that are the reference hold what it held: the policy of that checkpoint's `hf`."""
        if reference and not self.reference:
            folder = reference.removesuffix("/hf")
            loads = [rank.load_reference.remote(folder) for rank in self.ranks]
            await self._all(loads, "loading the reference")

    async def _require_shared_output(self) -> None:
        """A checkpoint has a part of every rank: either all write to one disk, or to a URI."""
        run = self.run
        if run.storage:
            return
        sees = [rank.sees.remote(str(run.output)) for rank in self.ranks]
        seen = await self._all(sees, f"looking for {run.output}")
        blind = [name for name, sees in zip(self._ranks_by_name(), seen, strict=True) if not sees]
        if blind:
            raise StorageError(
                f"output = {run.output} is not on a disk that all nodes share: "
                f"{', '.join(blind)} cannot see it",
                fix="give a folder that they share, or a URI: --output s3://BUCKET/RUN",
            )

    async def _one(self, reference: Any, what: str) -> Any:
        return await result_of(reference, self.run.call_timeout_s, what)

    async def _all(self, references: Sequence[Any], what: str) -> list[Any]:
        return await results_of(references, self.run.call_timeout_s, what)

    # --- questions

    async def encode(self, question: Question) -> Encoded:
        """The bytes of the question's features, and a reference to them; DataError when its media
        cannot be used."""
        if not (question.video or question.images):
            return 0, self._nothing
        return await self._encoding.of(question)

    async def live_bytes(self) -> float:
        """Features that may be in the object store at once: they lie on the encoder's node, and are
        copied to others as these fetch them."""
        if self.run.features.live_gb is not None:
            return self.run.features.live_gb * 1e9
        return await self._one(self.encoder.store_bytes.remote(), "the encoder's object store") / 2

    async def film(self, question: Question) -> Clip | None:
        """Some frames of the question's video."""
        return await self._one(self.encoder.film.remote(question), "a film")

    async def counts(self) -> dict[str, int]:
        """Clips decoded, encoded and found in the cache so far, as the encoder counted them."""
        return await self._one(self.encoder.counts.remote(), "counting media")

    def prompts(self, questions: Sequence[Question]) -> list[np.ndarray]:
        built = build_prompts(self.tokenizer, questions, self.run.prompt.template)
        return [prompt.ids for prompt in built]

    def tokenize(self, text: str) -> np.ndarray:
        """Ids [R] int32 of an edited response, without a stop token."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    # --- sampling

    def explore(self, tasks: Sequence[Task], prefix: str) -> AsyncIterator[Group]:
        """Groups of G rollouts, each as soon as it is finished."""
        return self._groups(tasks, prefix, self._exploring(prefix))

    async def _groups(
        self, tasks: Sequence[Task], prefix: str, sampling: Mapping[str, Any]
    ) -> AsyncGenerator[Group]:
        await self._turns.sampling()
        async with aclosing(self._dealer.groups(tasks, prefix, self.workers, sampling)) as groups:
            async for group in groups:
                yield group

    def _exploring(self, prefix: str) -> dict[str, Any]:
        rollout = self.run.rollout
        return {
            "n": rollout.group_size,
            "temperature": rollout.temperature,
            "max_tokens": rollout.max_tokens,
            **self._seeding(prefix),
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
            **self._seeding(prefix),
        }
        return self._groups(tasks, prefix, sampling)

    def _seeding(self, prefix: str) -> dict[str, Any]:
        """Equal for the same work of the same run: what is done again is sampled alike. Where it
        is not known beforehand which of several workers asks a question, each has its own seed."""
        seed = zlib.crc32(f"{self.run.seed}/{prefix}".encode())
        return {"seed": seed, "seed_each": self.workers.several}

    def deal(self, hand: str) -> list[Dealt]:
        """The next questions of a sampling, for the rollout worker that asks."""
        return self._dealer.deal(hand)

    # --- learning

    async def grpo_step(
        self,
        groups: Sequence[Group],
        features: Mapping[str, Any],
        phase: config.Grpo,
        max_gap: float | None,
        proximal: Mapping[str, Sequence[np.ndarray]],
    ) -> dict[str, float]:
        """One optimiser step on all these groups; every rank takes its share of them. proximal:
        what `score` gave before the first of several steps on one rollout batch, else empty."""
        wanted = {group.id: features[group.id] for group in groups}
        reference = None
        if phase.kl_coef:
            parts = await self._by_reference("reference_logprobs", groups, wanted)
            reference = {id_: rows for part in parts for id_, rows in part.items()}
        rows = ray.put([train_group(group, phase, reference, proximal) for group in groups])
        await self._before_step()
        async with self._turns.learning(updates=True):
            steps = [rank.grpo_step.remote([rows], wanted, phase, max_gap) for rank in self.ranks]
            return (await self._all(steps, "a grpo step"))[0]

    async def score(
        self, groups: Sequence[Group], features: Mapping[str, Any], phase: config.Grpo
    ) -> dict[str, list[np.ndarray]]:
        """Log-probabilities of every response under the learner's present weights, by group id;
        every rank takes its share of the groups."""
        rows = ray.put([train_group(group, phase, None, {}) for group in groups])
        async with self._turns.learning():
            calls = [rank.score.remote([rows], features) for rank in self.ranks]
            parts = await self._all(calls, "scoring by the learner")
        return {id_: rows for part in parts for id_, rows in part.items()}

    async def dpo_step(
        self, pairs: Sequence[Pair], features: Mapping[str, Any], phase: config.Dpo
    ) -> dict[str, float]:
        rows = ray.put([train_pair(pair) for pair in pairs])
        await self._before_step()
        async with self._turns.learning(updates=True):
            steps = [rank.dpo_step.remote([rows], features, phase) for rank in self.ranks]
            return (await self._all(steps, "a dpo step"))[0]

    async def attach_reference(
        self, pairs: Sequence[Pair], features: Mapping[str, Any]
    ) -> list[Pair]:
        """The pairs with reference log-probabilities; shards of msgpack both ways."""
        shards = await self._by_reference("attach", as_shard(pairs), features)
        scored = [pair for shard in shards for pair in codec.unpack_many(memoryview(shard), Pair)]
        place = {pair.id: number for number, pair in enumerate(pairs)}
        return sorted(scored, key=lambda pair: place[pair.id])

    async def _by_reference(self, method: str, *arguments: Any) -> list[Any]:
        """What the reference says: the actor, or each of the ranks of its share."""
        actors = [self.reference] if self.reference else self.ranks
        async with self._turns.learning():
            calls = [getattr(actor, method).remote(*arguments) for actor in actors]
            return await self._all(calls, "scoring by the reference")

    # --- weights

    async def publish(self, version: int) -> None:
        """The learner's weights to every rollout worker that is not lost over it."""
        async with self._syncing:
            self._published.clear()
            while True:
                try:
                    workers = self.workers.by_name()
                    async with self._turns.syncing():
                        await self._sync.publish(version, self._ranks_by_name(), workers)
                    break
                except LostError:
                    if not await self.workers.call_the_roll():
                        raise
            self._is_published(version)

    def _is_published(self, version: int) -> None:
        """The learner has the weights of this version until its next step."""
        self._version = version
        self._published.set()

    async def _before_step(self) -> None:
        """The learner's weights are about to be of no version."""
        async with self._syncing:
            self._published.clear()

    async def refit_reference(self, version: int) -> None:
        if not self.reference:
            keeping = [rank.keep_reference.remote() for rank in self.ranks]
            await self._all(keeping, "keeping the reference")
            return
        reference = {"reference": self.reference}
        async with self._turns.learning():
            await self._sync.refit(version, self._ranks_by_name(), reference)

    # --- rollout workers that join: see `actors.workers.Host`

    async def start_worker(self, number: int, limit_s: float) -> Any:
        """One that starts from the run's first weights, which stay where they are."""
        await self.seats.another(number, limit_s)
        return self._worker(number, str(self.checkpoint), version=-1)

    def end_worker(self, number: int, worker: Any) -> None:
        if worker is not None:
            ray.kill(worker)
        self.seats.leave(number)

    @property
    def replaces_workers(self) -> bool:
        """Not on a GPU on which a learner rank leaves vLLM no room to start. A run that is left
        with too few of them goes back to its last checkpoint, and starts them all."""
        return not self._turns.shared

    @property
    def can_catch_up(self) -> bool:
        return self._published.is_set()

    async def catch_up(self, worker: Any) -> None:
        """Give a worker that joins the weights of the present version, as soon as the learner has
        those of a version: in the middle of a phase's steps after the next sync."""
        while True:
            await self._published.wait()
            async with self._syncing:
                if self._published.is_set():
                    one = {"the rollout worker that joins": worker}
                    await self._sync.refit(self._version, self._ranks_by_name(), one)
                    return

    async def measure_gap(self, task: Task, limit: float) -> float:
        """Every rollout worker samples one group, of GAP_TOKENS at most, and the learner scores
        them under the same version: see `gap_of`."""
        sampling = self._exploring("gap")
        sampling["max_tokens"] = min(sampling["max_tokens"], GAP_TOKENS)
        groups: list[Group] = []
        await self._turns.sampling()
        while not groups:
            await self.workers.enough()
            groups = await self.workers.all(
                lambda number, worker: self._dealer.group(task, f"gap.{number}", worker, sampling)
            )
        return await self.gap_of(groups, {group.id: task.features for group in groups}, limit)

    async def gap_of(
        self, groups: Sequence[Group], features: Mapping[str, Any], limit: float
    ) -> float:
        """The largest difference between a token's log-probability at the rollout worker and at
        the learner, over groups of the learner's present version. PrecisionError above `limit`."""
        async with self._turns.learning():
            calls = [rank.logprobs.remote(groups, features) for rank in self.ranks]
            scores = (await self._all(calls, "scoring by the learner"))[0]
        gaps = {group.id: largest_gap(scores[group.id], group) for group in groups}
        worst = max(gaps, key=lambda id_: gaps[id_])
        if not gaps[worst] <= limit:
            raise gap_error(worst, gaps[worst], limit)
        return gaps[worst]

    async def save(self, folder: Path, uri: str | None = None) -> None:
        """Every rank writes its part into the folder; where a URI is given, each node's goes from
        there to it, and stays on this node only."""
        saves = [rank.save.remote(str(folder)) for rank in self.ranks]
        nodes = await self._all(saves, "writing the learner's checkpoint")
        if uri:
            here = ray.get_runtime_context().get_node_id()
            uploads = [
                rank.upload.remote(str(folder), uri, keep=node == here)
                for node, rank in dict(zip(nodes, self.ranks, strict=True)).items()
            ]
            await self._all(uploads, f"bringing the learner's checkpoint to {uri}")

    def close(self) -> None:
        self.workers.close()
        for actor in self._others:
            ray.kill(actor)
        self.seats.release()
