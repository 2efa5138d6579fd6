"""The sampler: questions in, finished groups out, with vLLM's batch kept full in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veripo_ray import config
from veripo_ray.config import TransportName
from veripo_ray.errors import DataError, EngineError, VeripoError
from veripo_ray.policy.folder import TOWER, load_tokenizer
from veripo_ray.policy.lora import changes
from veripo_ray.policy.qwen_vl import read_spec
from veripo_ray.records import Rollout
from veripo_ray.sampler.engine import Answer, Completion, Engine, seeded
from veripo_ray.sampler.requests import Sampled, SampleRequest, checked_prompt
from veripo_ray.weights import Manifest, Shapes, Update, shapes_of, stale_error

if TYPE_CHECKING:
    from vllm import SamplingParams

WEIGHTS, CACHE = "weights", "kv_cache"  # what can sleep, by vLLM's names
_NEW_WORKER = "start a new rollout worker"


class State(Enum):
    """What the engine is good for.

    A weight update that fails leaves STALE, because some weights may be new and some old; only an
    update that succeeds leads back to READY. A step that fails leaves DEAD; nothing leads back.
    """

    READY = "ready"
    STALE = "stale"
    DEAD = "dead"


@dataclass(slots=True)
class Stats:
    """What a sampler has done. seconds: those spent in `sample`, not at its consumer."""

    groups: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    weight_updates: int = 0

    def count(self, group: Sampled) -> None:
        self.groups += 1
        self.prompt_tokens += len(group.prompt_ids)
        self.tokens += sum(len(rollout.token_ids) for rollout in group.rollouts)


class Sampler:
    """Samples groups under the policy `version`. One `sample` at a time; not for several threads.

    device: 'cpu' or 'cuda'; on a GPU the engine takes `cfg.tensor_parallel` of them. tower: whether
    the vision tower learns; requests then come with frames, and weights with the tower's. lora:
    the learner's; weights then come without those that rest. sleeps: whether it shares its GPU.
    asleep: what of the engine gave its memory back; nothing is sampled until all is awake.
    transport: how weights may come beside the object store.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        cfg: config.Rollout,
        *,
        device: str = "cpu",
        seed: int = 0,
        version: int = 0,
        tower: bool = False,
        lora: config.Lora | None = None,
        sleeps: bool = False,
        transport: TransportName = "object_store",
    ) -> None:
        self.cfg, self.version, self.tower = cfg, version, tower
        self.spec = read_spec(checkpoint)
        self.tokenizer = load_tokenizer(checkpoint)
        self.state, self.stats = State.READY, Stats()
        self._weights = _weights_that_learn(checkpoint, tower, lora)
        self._update: Update | None = None
        self._in_flight: dict[str, np.ndarray] = {}  # expanded prompts by request id
        self._sampling = False
        self.asleep: frozenset[str] = frozenset()
        self._engine = Engine(
            checkpoint,
            self.spec,
            cfg,
            device=device,
            seed=seed,
            tower=tower,
            sleeps=sleeps,
            transport=transport,
        )

    # --- sampling -------------------------------------------------------------------------------

    def sample(self, requests: Iterable[SampleRequest], **sampling: Any) -> Iterator[Sampled]:
        """Yield every group as soon as it is finished; `sampling` is that of `steps`."""
        with closing(self.steps(requests, **sampling)) as steps:
            for finished in steps:
                yield from finished

    def steps(
        self,
        requests: Iterable[SampleRequest],
        *,
        n: int,
        temperature: float,
        max_tokens: int,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        seed_each: bool = False,
    ) -> Generator[list[Sampled], None, None]:
        """Yield after every step of the engine, each a token of everything in its batch, the groups
        of n rollouts, one a request, that it finished: mostly none.

        Requests are pulled one at a time, when the engine's batch has room. The log-probabilities
        are those of the distribution that was sampled from: temperature and penalty applied,
        special tokens banned. A temperature below 0.01 means greedy decoding; log-probabilities
        are then those at temperature 1.

        seed: the same requests in the same order then give the same rollouts. seed_each: every
        request draws from a seed of its own, made of `seed` and its id, so that its rollouts do not
        depend on its company (but for rounding, which may differ with the size of the batch); vLLM
        takes a few percent longer for it with a tiny model.
        Raises DataError naming a request that cannot be answered, VeripoError when the weights are
        stale, and EngineError when the engine fails. Whatever ends it early, the engine forgets
        what is left.
        """
        self._refuse_unless_ready()
        self._sampling = True
        try:
            if seed is not None:
                self._engine.seed(seed)
            settings = self._engine.settings(
                n=n,
                temperature=temperature,
                max_tokens=max_tokens,
                repetition_penalty=repetition_penalty,
            )
            own_seeds = seed if seed_each else None
            with closing(self._groups(iter(requests), settings, own_seeds)) as steps:
                yield from self._counted(steps)
        finally:
            self._sampling = False

    def _groups(
        self,
        requests: Iterator[SampleRequest],
        settings: SamplingParams,
        seed: int | None,
    ) -> Generator[list[Sampled], None, None]:
        """Fill the batch, compute a token of everything in it, hand out what that finished."""
        try:
            while self._fill(requests, settings, seed):
                yield [self._group(answer) for answer in self._step()]
        finally:
            if self._in_flight and self.state is not State.DEAD:
                self._engine.abort(list(self._in_flight))
            self._in_flight.clear()

    def _counted(self, steps: Iterator[list[Sampled]]) -> Iterator[list[Sampled]]:
        while True:
            started = time.perf_counter()
            finished = next(steps, None)
            self.stats.seconds += time.perf_counter() - started
            if finished is None:
                return
            for group in finished:
                self.stats.count(group)
            yield finished

    def _fill(
        self, requests: Iterator[SampleRequest], settings: SamplingParams, seed: int | None
    ) -> bool:
        """Add requests until the batch is full; whether there is anything to compute.

        The batch counts rollouts. The last group may find room for some of its own only; the others
        wait in vLLM's queue, and take the next free places without a step in between.
        """
        while self._engine.unfinished < self.cfg.max_num_seqs:
            if (request := next(requests, None)) is None:
                break
            self._add(request, settings if seed is None else seeded(settings, seed, request.id))
        return bool(self._in_flight)

    def _add(self, request: SampleRequest, settings: SamplingParams) -> None:
        prompt_ids = self.check(request, settings.max_tokens)
        if request.id in self._in_flight:
            raise DataError(
                f"two requests in flight have the id {request.id!r}",
                fix="give every request an id of its own",
            )
        self._in_flight[request.id] = prompt_ids
        self._engine.add(request.id, request.prompt_ids, request.features, settings)

    def check(self, request: SampleRequest, max_tokens: int) -> np.ndarray:
        """The request's expanded prompt ids [P]; DataError when it could not be answered."""
        return checked_prompt(
            request,
            self.spec,
            self.tokenizer,
            tower=self.tower,
            max_tokens=max_tokens,
            max_model_len=self.cfg.max_model_len,
        )

    def _step(self) -> list[Answer]:
        try:
            return self._engine.step()
        except Exception as error:  # of whatever kind: the engine's own books are wrong after it
            self.state = State.DEAD
            names = ", ".join(sorted(self._in_flight))
            raise EngineError(
                f"vLLM failed while it sampled {names}: {error!r}",
                fix=f"{_NEW_WORKER}; if that fails again, look at these questions",
            ) from error

    # --- from answers to groups

    def _group(self, answer: Answer) -> Sampled:
        prompt_ids = self._in_flight.pop(answer.id)
        if not np.array_equal(prompt_ids, answer.prompt_ids):
            raise VeripoError(
                f"request {answer.id!r}: vLLM made {len(answer.prompt_ids)} prompt tokens of it, "
                f"the learner's expansion {len(prompt_ids)}",
                fix="use the versions of vLLM that `veripo doctor` names",
            )
        spoken = [self._spoken(completion) for completion in answer.completions]
        texts = self.tokenizer.backend_tokenizer.decode_batch(spoken, skip_special_tokens=False)
        both = zip(answer.completions, texts, strict=True)
        return Sampled(answer.id, prompt_ids, tuple(self._rollout(answer.id, *o) for o in both))

    @staticmethod
    def _spoken(completion: Completion) -> list[int]:
        """A completion's ids without the stop token."""
        ids = completion.token_ids
        return (ids[:-1] if completion.reason == "stop" else ids).tolist()

    def _rollout(self, request_id: str, completion: Completion, text: str) -> Rollout:
        reason = completion.reason
        if reason not in ("stop", "length"):
            raise VeripoError(f"request {request_id!r}: vLLM ended it with {reason!r}")
        return Rollout(
            text=text,
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            finish_reason=reason,
            policy_version=self.version,
        )

    # --- weights --------------------------------------------------------------------------------

    def begin_update(self, manifest: Manifest) -> None:
        """Make ready for new weights.

        manifest: has to announce every weight that learns, by checkpoint name (with LoRA:
        `policy.lora.changes`). Raises CheckpointError, with nothing changed, when one is missing,
        unknown or of another shape, and VeripoError in the middle of a `sample`. From the first
        weight on the sampler is STALE, until `finish_update` succeeds.
        """
        self._refuse_unless_ready(stale_will_do=True, awake={WEIGHTS})
        self._abandon()
        self._update = Update(manifest, self._weights)

    def take(self, weights: Mapping[str, np.ndarray]) -> None:
        """Replace these weights in place: a bucket of `veripo_ray.weights`, each weight once."""
        self._replace(shapes_of(weights), lambda: self._engine.take(weights))

    def receive(self, told: Mapping[str, Any]) -> None:
        """As `take`, of weights that vLLM's own transfer brings. told: its update info."""
        shapes = {n: tuple(shape) for n, shape in zip(told["names"], told["shapes"], strict=True)}
        self._replace(shapes, lambda: self._engine.receive(told))

    def _replace(self, shapes: Shapes, load: Callable[[], None]) -> None:
        self._refuse_unless_ready(stale_will_do=True, awake={WEIGHTS})
        if self._update is None:
            raise VeripoError("weights came without an update", fix="begin one first")
        self.state = State.STALE
        try:
            self._update.arrived(shapes)
            load()
        except Exception:
            self._abandon()
            raise

    def finish_update(self) -> None:
        """All weights have come: drop what the old ones computed, and sample from the new ones."""
        if self._update is None:
            raise VeripoError("no update has begun", fix="begin one first")
        try:
            self._update.require_whole()
            self._engine.finish_update()
        except Exception:
            self._abandon()
            raise
        self.state, self.version, self._update = State.READY, self._update.version, None
        self.stats.weight_updates += 1

    def load_weights(self, version: int, weights: Mapping[str, np.ndarray]) -> None:
        """A whole update from a snapshot."""
        self.begin_update(Manifest.of(version, weights))
        self.take(weights)
        self.finish_update()

    def connect(self, info: Mapping[str, Any]) -> None:
        """Meet the sender of vLLM's own transfer. info: its init info."""
        self._engine.connect(info)

    def disconnect(self) -> None:
        self._engine.disconnect()

    def _abandon(self) -> None:
        """An update that will not be finished leaves nothing in the way of the next one."""
        self._update = None
        self._engine.abandon_update()

    def sleep(self, level: int = 1) -> None:
        """Give the GPU to others; sleeping on changes nothing. Level 1 keeps the weights in the
        machine's memory. Level 2 drops them: the sampler is STALE until a weight update, which must
        bring every one of them."""
        if self.asleep:
            return
        self._refuse_unless_ready(stale_will_do=True)
        self.asleep = frozenset((WEIGHTS, CACHE))
        if level == 2:
            self.state = State.STALE
        self._engine.sleep(level)

    def wake(self, tags: Iterable[str] = (WEIGHTS, CACHE)) -> None:
        """Take the GPU's memory again for weights, keys and values, or both. Before a weight update
        weights alone will do, and leave room for who brings them."""
        if wanted := self.asleep & frozenset(tags):
            self._engine.wake(sorted(wanted, reverse=True))  # weights first
            self.asleep -= wanted

    def close(self) -> None:
        """End the engine."""
        self.state = State.DEAD
        self._engine.close()

    def _refuse_unless_ready(
        self, *, stale_will_do: bool = False, awake: Collection[str] = (WEIGHTS, CACHE)
    ) -> None:
        if self._sampling:
            raise VeripoError(
                "the sampler is in the middle of a `sample`", fix="use up or close its iterator"
            )
        if self.state is State.DEAD:
            raise EngineError("vLLM's engine has ended", fix=_NEW_WORKER)
        if sleeping := self.asleep & frozenset(awake):
            raise VeripoError(
                f"the sampler's {' and '.join(sorted(sleeping))} are asleep", fix="wake them first"
            )
        if self.state is State.STALE and not stale_will_do:
            raise stale_error(self.version, "rollout worker")


def _weights_that_learn(
    checkpoint: str | Path, tower: bool, lora: config.Lora | None
) -> dict[str, tuple[int, ...]]:
    """Shapes of those of the checkpoint's weights that a weight update brings, by name."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(checkpoint).glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                if tower if name.startswith(TOWER) else changes(name, lora):
                    shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes
