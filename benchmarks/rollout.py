"""Tokens a second through our rollout worker, against bare vLLM and transformers' generate.

    python benchmarks/rollout.py --json results.json

The sides take turns in one process, on the same weights, requests, features, ban list and seeds:

    worker        RolloutWorker, a Ray actor: questions dealt by another actor, groups streamed
    sampler       the same Sampler without Ray
    vllm          the same engine, all requests added at once, then stepped until it is empty; it
                  gives what the worker gives: ids, log-probabilities and texts
    vllm_ids      the same without texts: all that a rollout costs vLLM itself
    transformers  generate, as many rollouts at once as vLLM's batch holds, pixels through the tower

Prints medians over the rounds. over_vllm is the median of the rounds' ratios worker / vllm, by wall
time, over_vllm_ids that of vllm_ids; on a machine that others use as well, look at the ratios by
CPU seconds of the sampling process beside them (which do not see time spent idle). The first four
must draw the same tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import ray
from _common import write

from actors import workers
from actors.dealing import Dealer, Dealt
from actors.feed import Task
from actors.rollout import RolloutWorker
from veripo_ray import config
from veripo_ray.policy.media import Features, Spec
from veripo_ray.records import Kind, Question
from veripo_ray.sampler import SampleRequest

SIDES = ("worker", "sampler", "vllm", "vllm_ids", "transformers")
SEED = 7
SLOW_ROUNDS = 2  # in which transformers takes part: it is no close race


@dataclass(frozen=True)
class Regime:
    """questions with `words` random words each, after a clip of `clip` patches (time, height,
    width) where there is one; hidden: of a random trunk, None for the shipped checkpoint."""

    name: str
    questions: int
    group: int
    words: int
    max_tokens: int
    max_num_seqs: int
    clip: tuple[int, int, int] | None = None
    hidden: int | None = None


REGIMES = (
    Regime("many short prompts", 96, 8, words=40, max_tokens=64, max_num_seqs=64),
    Regime("many short prompts, wider", 32, 8, 40, max_tokens=64, max_num_seqs=64, hidden=512),
    Regime(
        "1,000 video tokens", 4, 8, words=20, max_tokens=64, max_num_seqs=32,
        clip=(10, 20, 20), hidden=512,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """tokens sampled, what they were, and the seconds that they took."""

    tokens: int
    digest: str
    wall: float
    cpu: float


def main() -> None:
    args = _arguments()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        rows = [_measure(regime, args.rounds) for regime in REGIMES[: args.regimes]]
    finally:
        ray.shutdown()
    write(args.json, "rollout", rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--regimes", type=int, default=len(REGIMES), help="the first so many")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


# --- one regime


def _measure(regime: Regime, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _checkpoint(regime, Path(folder))
        host = ray.remote(Host).options(num_cpus=1).remote(str(checkpoint), regime)
        leader = ray.remote(Leader).options(num_cpus=1).remote(host, regime)
        turns: dict[str, list[Turn]] = {name: [] for name in SIDES}
        for number in range(rounds + 1):
            for name in SIDES if number <= SLOW_ROUNDS else SIDES[:-1]:
                side = leader if name == "worker" else host
                turn = ray.get(getattr(side, f"time_{name}").remote(), timeout=1800)
                if number:  # the first round warms up
                    turns[name].append(turn)
        for actor in (leader, host):
            ray.kill(actor)
    _same_tokens(turns)
    row = {
        "regime": regime.name,
        "questions": regime.questions,
        "group": regime.group,
        "prompt_tokens": prompt_tokens(regime),
        "tokens_per_second": _rates(turns, _wall),
        "tokens_per_cpu_second": _rates(turns, _cpu),
        **{
            f"{own}over_{bare}{unit}": _ratio(turns, side, bare, seconds)
            for own, side in (("", "worker"), ("sampler_", "sampler"))
            for bare in ("vllm", "vllm_ids")
            for unit, seconds in (("", _wall), ("_cpu", _cpu))
        },
    }
    _print(row)
    return row


def _wall(turn: Turn) -> float:
    return turn.wall


def _cpu(turn: Turn) -> float:
    return turn.cpu


def _same_tokens(turns: dict[str, list[Turn]]) -> None:
    digests = {turn.digest for name in SIDES[:-1] for turn in turns[name]}
    if len(digests) > 1:
        raise SystemExit("worker, sampler and bare vLLM did not draw the same tokens")


def _rates(turns: dict[str, list[Turn]], seconds: Callable[[Turn], float]) -> dict[str, float]:
    return {
        name: round(statistics.median(turn.tokens / seconds(turn) for turn in side), 1)
        for name, side in turns.items()
    }


def _ratio(
    turns: dict[str, list[Turn]], own: str, bare: str, seconds: Callable[[Turn], float]
) -> float:
    """The median over the rounds of vLLM's time over ours: they sampled the same tokens."""
    rounds = zip(turns[own], turns[bare], strict=True)
    return round(statistics.median(seconds(theirs) / seconds(ours) for ours, theirs in rounds), 3)


def _print(row: dict[str, Any]) -> None:
    print(f"\n{row['regime']}: {row['questions']} questions, groups of {row['group']}")
    print(f"  {'tokens a second of':20}{'wall':>10}{'CPU':>10}")
    for name in SIDES:
        wall, cpu = row["tokens_per_second"][name], row["tokens_per_cpu_second"][name]
        print(f"  {name:20}{wall:10.1f}{cpu:10.1f}")
    for own in ("", "sampler_"):
        for bare in ("vllm", "vllm_ids"):
            name = f"{own}over_{bare}"
            print(f"  {name:20}{row[name]:10.3f}{row[f'{name}_cpu']:10.3f}", flush=True)


def prompt_tokens(regime: Regime) -> int:
    """Prompt tokens of a question, its clip expanded."""
    return regime.words + 2 + (2 + _clip_tokens(regime) if regime.clip else 0)


def _clip_tokens(regime: Regime) -> int:
    time_, height, width = regime.clip or (0, 0, 0)
    return time_ * height * width // 4


def _checkpoint(regime: Regime, folder: Path) -> Path:
    if regime.hidden is None:
        return Path(str(files("veripo_ray.tinyworld"))) / "checkpoint"
    from veripo_ray.tinyworld.checkpoint import (
        build_config,
        build_model,
        build_processor,
        build_tokenizer,
    )

    tokenizer = build_tokenizer()
    settings = build_config(tokenizer)
    text = settings.text_config
    text.hidden_size, text.intermediate_size = regime.hidden, 2 * regime.hidden
    text.num_attention_heads, text.num_key_value_heads = regime.hidden // 64, 2
    text.num_hidden_layers, text.max_position_embeddings = 6, 4096
    text.layer_types = ["full_attention"] * 6
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [8, 12, 12]}
    settings.vision_config.out_hidden_size = regime.hidden
    build_processor(tokenizer).save_pretrained(folder)
    build_model(settings, seed=0).save_pretrained(folder)
    return folder


def requests(regime: Regime, spec: Spec) -> list[SampleRequest]:
    """The questions: random words, and random features where there is a clip."""
    rng = np.random.default_rng(0)
    plain = sorted(set(range(spec.vocab_size)) - {*spec.banned_ids, *spec.stop_ids})
    made = []
    for number in range(regime.questions):
        ids, media = [rng.choice(plain, 2)], ()
        if regime.clip:
            ids.append([spec.vision_start, spec.video_pad, spec.vision_end])
            values = rng.standard_normal((_clip_tokens(regime), spec.hidden_size), np.float32)
            media = (Features("video", values, regime.clip, 0.5),)
        ids.append(rng.choice(plain, regime.words))
        made.append(SampleRequest(f"q{number}", np.concatenate(ids).astype(np.int32), media))
    return made


def _digest(groups: dict[str, Sequence[np.ndarray]]) -> str:
    text = [f"{id_}:{[list(map(int, row)) for row in groups[id_]]}" for id_ in sorted(groups)]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


def _turn(groups: dict[str, Sequence[np.ndarray]], wall: float, cpu: float) -> Turn:
    tokens = sum(len(row) for rows in groups.values() for row in rows)
    return Turn(tokens, _digest(groups), wall, cpu)


# --- the sides


class Host(RolloutWorker):
    """The rollout worker, and in its process what it is compared with."""

    def __init__(self, checkpoint: str, regime: Regime) -> None:
        self.checkpoint, self.regime = checkpoint, regime
        cfg = config.Rollout(
            dtype="float32",
            group_size=regime.group,
            max_num_seqs=regime.max_num_seqs,
            max_model_len=prompt_tokens(regime) + regime.max_tokens + 8,
            max_tokens=regime.max_tokens,
        )
        super().__init__(checkpoint, cfg)
        self.asked = requests(regime, self.sampler.spec)
        self.model: Any = None

    def questions(self) -> list[SampleRequest]:
        return self.asked

    def cpu_seconds(self) -> float:
        return time.process_time()

    def reset(self) -> None:
        """No side may find the prompts of the side before it in the cache."""
        self.sampler._engine._vllm.reset_prefix_cache()
        self.sampler._engine._vllm.reset_encoder_cache()

    def _timed(self, work: Callable[[], dict[str, Sequence[np.ndarray]]]) -> Turn:
        self.reset()
        wall, cpu = time.perf_counter(), time.process_time()
        groups = work()
        return _turn(groups, time.perf_counter() - wall, time.process_time() - cpu)

    def time_sampler(self) -> Turn:
        def work() -> dict[str, Sequence[np.ndarray]]:
            groups = self.sampler.sample(self.asked, **_sampling(self.regime))
            return {group.id: [rollout.token_ids for rollout in group.rollouts] for group in groups}

        return self._timed(work)

    def time_vllm(self) -> Turn:
        return self._bare(texts=True)

    def time_vllm_ids(self) -> Turn:
        return self._bare(texts=False)

    def _bare(self, *, texts: bool) -> Turn:
        """LLMEngine as its own users drive it, every request in its queue from the start."""
        engine = self.sampler._engine._vllm
        own = {name: _sampling(self.regime)[name] for name in ("n", "temperature", "max_tokens")}
        settings = self.sampler._engine.settings(**own)
        settings.detokenize = texts
        prompts = {request.id: _vllm_prompt(request) for request in self.asked}
        model = engine.model_executor.driver_worker.get_model()
        ours = model.__dict__.pop("get_mrope_input_positions")  # bare: as vLLM has it

        def work() -> dict[str, Sequence[np.ndarray]]:
            self.sampler._engine.seed(SEED)
            for id_, prompt in prompts.items():
                engine.add_request(id_, prompt, settings)
            done = []
            while engine.has_unfinished_requests():
                done += engine.step()
            assert any(out.text for one in done for out in one.outputs) == texts
            return {one.request_id: [out.token_ids for out in one.outputs] for one in done}

        try:
            return self._timed(work)
        finally:
            model.get_mrope_input_positions = ours

    def time_transformers(self) -> Turn:
        import torch

        torch.manual_seed(SEED)
        with torch.no_grad():
            return self._timed(self._generate)

    def _generate(self) -> dict[str, Sequence[np.ndarray]]:
        regime, found = self.regime, {}
        at_once = 1 if regime.clip else regime.max_num_seqs // regime.group
        for start in range(0, len(self.asked), at_once):
            part = self.asked[start : start + at_once]
            found |= self._generated(part)
        return found

    def _generated(self, part: Sequence[SampleRequest]) -> dict[str, Sequence[np.ndarray]]:
        """As many prompts at once as there are places in vLLM's batch; all are of one length."""
        import torch

        model, spec, regime = self._transformers(), self.sampler.spec, self.regime
        expanded = [self.sampler.check(request, regime.max_tokens) for request in part]
        ids = torch.from_numpy(np.stack(expanded)).long()
        media: dict[str, Any] = {}
        if regime.clip:
            patches = int(np.prod(regime.clip))
            media = {
                "pixel_values_videos": torch.randn(patches, 3 * 2 * spec.patch**2),
                "video_grid_thw": torch.tensor([regime.clip]),
                "second_per_grid_ts": torch.tensor([0.5]),
                "mm_token_type_ids": (ids == spec.video_pad).long() * 2,
            }
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **media,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            num_return_sequences=regime.group,
            max_new_tokens=regime.max_tokens,
            suppress_tokens=list(spec.banned_ids),
            eos_token_id=list(spec.stop_ids),
            pad_token_id=spec.stop_ids[0],
        )[:, ids.shape[1] :]
        rows = [_until_stop(row, spec) for row in out.numpy()]
        return {
            request.id: rows[n * regime.group : (n + 1) * regime.group]
            for n, request in enumerate(part)
        }

    def _transformers(self) -> Any:
        if self.model is None:
            import torch
            from transformers import Qwen2_5_VLForConditionalGeneration

            kind = Qwen2_5_VLForConditionalGeneration
            self.model = kind.from_pretrained(self.checkpoint, dtype=torch.float32).eval()
        return self.model


class Leader:
    """Deals the questions out and collects the groups, as the coordinator does."""

    def __init__(self, host: Any, regime: Regime) -> None:
        self.host, self.regime = host, regime
        self.dealer = Dealer(regime.max_num_seqs, limit_s=1800.0)
        self.workers = workers.Workers(config.Rollout(), _NobodyElse())
        self.workers.begin([host])
        asked = ray.get(host.questions.remote())
        nothing = ray.put(())  # of all questions without media, as in a run
        self.tasks = [
            Task(
                Question(id=request.id, text="?", kind=Kind.NUMERIC, gold="1"),
                request.prompt_ids,
                ray.put(request.features) if request.features else nothing,
            )
            for request in asked
        ]

    async def deal(self, hand: str) -> list[Dealt]:
        return self.dealer.deal(hand)

    async def time_worker(self) -> Turn:
        await self.host.reset.remote()
        wall, cpu = time.perf_counter(), await self.host.cpu_seconds.remote()
        sampled = self.dealer.groups(self.tasks, "", self.workers, _sampling(self.regime))
        groups = {
            group.question.id: [rollout.token_ids for rollout in group.rollouts]
            async for group in sampled
        }
        seconds = time.perf_counter() - wall
        return _turn(groups, seconds, await self.host.cpu_seconds.remote() - cpu)


class _NobodyElse(workers.Host):
    """There is one worker, and no other joins."""


def _sampling(regime: Regime) -> dict[str, Any]:
    return {
        "n": regime.group,
        "temperature": 1.0,
        "max_tokens": regime.max_tokens,
        "seed": SEED,
    }


def _vllm_prompt(request: SampleRequest) -> dict[str, Any]:
    import torch

    prompt: dict[str, Any] = {"prompt_token_ids": request.prompt_ids.tolist()}
    for item in request.features:
        prompt["multi_modal_data"] = {
            "video": {
                "video_embeds": torch.from_numpy(np.array(item.values)),
                "video_grid_thw": torch.tensor([item.grid_thw]),
                "second_per_grid_ts": torch.tensor([item.seconds_per_grid]),
            }
        }
    return prompt


def _until_stop(row: np.ndarray, spec: Spec) -> np.ndarray:
    """The tokens up to the first stop token; what follows is padding."""
    stops = np.flatnonzero(np.isin(row, spec.stop_ids))
    return row[: stops[0] + 1] if len(stops) else row


if __name__ == "__main__":
    main()
