"""The vllm judge: a real vLLM engine with random weights, in a real Ray Serve deployment."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from deployments import judge
from veripo_ray import config
from veripo_ray.prompts import judge as prompts
from veripo_ray.records import Kind
from veripo_ray.verifier.judges import Answered, Ask, Case, build
from veripo_ray.verifier.judges.vllm_prompts import Prompts

APP = "judge-alone"
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CASES = [
    Case(f"Which car is number {number}?", Kind.CHOICE, ("red", "blue"), "It. " * number, "B")
    for number in range(1, 20)
]

A_MINUTE_OF_WORK = [f"{number}" + "x" * 4000 for number in range(1000)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 with random weights that spells its text in bytes, but has tokens of yes and no."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("judge")
    merges = [("y", "e"), ("ye", "s"), ("n", "o"), ("\u0120", "yes"), ("N", "o")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = ["<|im_start|>", "<|im_end|>", *alphabet, *(a + b for a, b in merges)]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in vocabulary[:2]])
    PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", chat_template=TURNS
    ).save_pretrained(folder)
    shape = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        initializer_range=0.3,
        eos_token_id=1,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2ForCausalLM(shape).float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cfg(checkpoint: Path) -> config.VllmJudge:
    return config.VllmJudge(
        model=str(checkpoint), dtype="float32", max_batch=16, max_model_len=4096, timeout_s=60
    )


@pytest.fixture(scope="module")
def handle(serve_address: tuple[str, int], cfg: config.VllmJudge) -> Iterator[object]:
    from ray import serve

    yield serve.run(judge.bind(cfg), name=APP, route_prefix=None)
    serve.delete(APP)


@pytest.fixture
def ask(handle, cfg) -> Ask:
    return judge.ask(handle, cfg)


class Replicas:
    """A handle that answers with the number of prompts that each call had."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.score = SimpleNamespace(remote=self._score)

    async def _score(self, prompts: list[str]) -> list[str]:
        self.calls.append(len(prompts))
        return prompts


@pytest.mark.parametrize(
    ("prompts", "replicas", "calls"),
    [
        (32, 1, [32]),
        (32, 2, [16, 16]),  # both work for a single request
        (10, 2, [8, 2]),  # a step of an engine is worth eight
        (5, 4, [5]),
        (200, 2, [64, 64, 64, 8]),  # no more than go into a step
        (0, 2, []),
    ],
)
def test_the_cases_of_a_request_are_shared_among_the_replicas(prompts, replicas, calls):
    handle = Replicas()
    ask = judge.ask(handle, config.VllmJudge(model="unused", replicas=replicas, max_batch=64))
    asked = [str(number) for number in range(prompts)]
    assert asyncio.run(ask(asked)) == asked
    assert handle.calls == calls


def rendered(case: Case) -> str:
    return prompts.render(
        "consistency",
        question=case.question,
        options=case.options,
        thinking=case.thinking,
        answer=case.answer,
    )


@pytest.fixture(scope="module")
def expected(checkpoint) -> list[float]:
    """P(yes) of every case by transformers: a softmax over the tokens of the two words."""
    import torch
    from transformers import AutoModelForCausalLM

    tokens = Prompts(str(checkpoint))
    assert (len(tokens.yes_ids), len(tokens.no_ids)) == (2, 2)  # "yes", " yes"; "no", "No"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    found = []
    for case in CASES:
        ids = torch.tensor(tokens.encode([rendered(case)]))
        with torch.inference_mode():
            logits = model(ids).logits[0, -1]
        both = logits[[*tokens.yes_ids, *tokens.no_ids]].softmax(-1)
        found.append(both[:2].sum().item())
    return found


def test_its_probability_is_that_of_the_model(ask, expected):
    answered = asyncio.run(ask([rendered(case) for case in CASES]))
    assert [one.probability for one in answered] == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.01  # the cases do not all look alike to it


def test_requests_that_meet_in_a_batch_each_get_their_own_answers(ask, expected):
    async def go() -> list[list[Answered | str]]:
        asked = [[CASES[n], CASES[(n + 5) % len(CASES)]] for n in range(len(CASES))]
        return await asyncio.gather(*(ask([rendered(case) for case in two]) for two in asked))

    for number, (one, other) in enumerate(asyncio.run(go())):
        assert one.probability == pytest.approx(expected[number], abs=1e-4)
        assert other.probability == pytest.approx(expected[(number + 5) % len(CASES)], abs=1e-4)


def test_a_case_that_is_too_long_or_no_text_has_an_error_of_its_own(ask, expected):
    bad = ["It. " * 5000, "half a pair \ud800"]
    first, long, odd, last = asyncio.run(ask([rendered(CASES[0]), *bad, rendered(CASES[1])]))
    assert "over judges.vllm.max_model_len = 4096" in long
    assert "cannot be put to the model" in odd
    assert [first.probability, last.probability] == pytest.approx(expected[:2], abs=1e-4)


def test_the_longest_case_that_fits_is_answered(ask, checkpoint):
    room = 4096 - 1 - len(Prompts(str(checkpoint)).encode([""])[0])
    fits, over = asyncio.run(ask(["x" * room, "x" * (room + 1)]))
    assert isinstance(fits, Answered)
    assert over == (
        "the case takes 4096 tokens, with the answer over judges.vllm.max_model_len = 4096"
    )


def test_as_a_judge_it_gives_probabilities_reasons_and_errors(ask, cfg, expected):
    cases = [*CASES[:2], Case("?", Kind.CHOICE, (), "x" * 5000, "B")]
    one, two, long = asyncio.run(build("vllm", config.Judges(vllm=cfg), ask).judge(cases))
    assert [one.probability, two.probability] == pytest.approx(expected[:2], abs=1e-4)
    assert one.consistent is (expected[0] >= 0.5)
    assert f"P(yes) = {expected[0]:.3f}" in one.reason
    assert (long.consistent, long.probability) == (None, None)
    assert "max_model_len" in long.error


def test_slower_than_the_deadline_is_an_error_of_the_case(handle, cfg, ask):
    hasty = judge.ask(handle, cfg.model_copy(update={"timeout_s": 1e-6}))
    assert (
        asyncio.run(hasty(["a", "b"]))
        == [f"the judge's model {cfg.model}: no answer within 1e-06 s (judges.vllm.timeout_s)"] * 2
    )
    assert isinstance(asyncio.run(ask(["a"]))[0], Answered)


def test_cancelled_it_withdraws_what_it_asked(ask):
    async def go() -> None:
        asked = asyncio.create_task(ask(A_MINUTE_OF_WORK))
        await asyncio.sleep(0.5)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert isinstance((await ask(["a"]))[0], Answered)  # its turn comes within `timeout_s`

    asyncio.run(go())


def test_more_than_may_wait_is_refused_and_the_rest_answered(ask):
    async def go() -> list[list[Answered | str]]:
        return await asyncio.gather(*(ask([f"{number}"]) for number in range(1500)))

    answers = [answer for answers in asyncio.run(go()) for answer in answers]
    refused = [answer for answer in answers if isinstance(answer, str)]
    assert all("too many cases wait" in error for error in refused)
    assert 0 < len(refused) < 1500
    assert all(
        math.isfinite(answer.probability) for answer in answers if isinstance(answer, Answered)
    )


def test_a_replica_that_dies_is_an_error_of_the_cases_it_was_asked(handle, cfg):
    """The last test here, since nothing waits for Serve to start another replica."""
    brief = judge.ask(handle, cfg.model_copy(update={"timeout_s": 2.0}))
    named = ray.util.list_named_actors(all_namespaces=True)
    (replica,) = [actor for actor in named if f"{APP}#Judge#" in actor["name"]]

    async def go() -> list[Answered | str]:
        asked = asyncio.create_task(brief(A_MINUTE_OF_WORK))
        await asyncio.sleep(0.5)
        ray.kill(ray.get_actor(replica["name"], namespace=replica["namespace"]))
        return await asked

    answers = asyncio.run(go())
    errors = [answer for answer in answers if isinstance(answer, str)]
    assert errors
    assert all(f"the judge's model {cfg.model}: " in error for error in errors)


def test_a_replica_whose_engine_failed_asks_to_be_replaced_and_uses_it_no_more():
    used = []

    def answer(encoded: list[list[int]]) -> list[Answered | str]:
        used.append(encoded)
        raise MemoryError("no room for keys and values")

    replica = object.__new__(judge._Replica)  # without the engine that a judge would load
    replica._engine, replica._thread = SimpleNamespace(answer=answer), ThreadPoolExecutor(1)
    replica._broken = ""
    replica.check_health()
    with pytest.raises(MemoryError):
        asyncio.run(replica._answered([[[1]], [[2]]]))
    with pytest.raises(RuntimeError, match="MemoryError: no room for keys and values"):
        replica.check_health()
    with pytest.raises(RuntimeError, match="engine failed"):
        asyncio.run(replica._answered([[[3]]]))
    assert used == [[[1], [2]]]
