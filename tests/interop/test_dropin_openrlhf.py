"""OpenRLHF's own remote reward client gets VerIPO's reward from the endpoint, or none at all."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from veripo_ray.compat import stand_in_flash_attn

stand_in_flash_attn()
agent = pytest.importorskip("openrlhf.utils.agent")

PROMPT = "How many legs do two cats have? "
GOOD = "<think> four legs and four more, so 8 </think> <answer> 8 </answer>"
WRONG = "<think> four legs and two more, so 6 </think> <answer> 6 </answer>"
WAVERING = "<think> four legs and two more, so 6 </think> <answer> 8 </answer>"


class Letters:
    """A tokenizer of one token a character, as far as the executor asks for one."""

    def __call__(self, text: str, **_: object) -> dict[str, SimpleNamespace]:
        ids = [[ord(letter) for letter in text]]
        return {"input_ids": [SimpleNamespace(tolist=lambda: ids[0])]}

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(map(chr, ids))


class Says:
    """An engine that samples what it is told to."""

    def __init__(self, response: str) -> None:
        self._response = response

    async def generate(self, *_: object, **__: object) -> SimpleNamespace:
        ids = [ord(letter) for letter in self._response]
        output = SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


def executed(url: str, response: str, label: str) -> dict:
    params = SimpleNamespace(max_tokens=512, logprobs=None)
    executor = agent.SingleTurnAgentExecutor(f"{url}/get_reward")
    work = executor.execute(PROMPT, label, params, 2048, Letters(), Says(response))
    return asyncio.run(work)


@pytest.fixture(scope="module")
def url(serve_verifier) -> str:
    return serve_verifier(rewards__label_kind="numeric", rewards__inconsistency_penalty=0.25)


@pytest.mark.parametrize(
    ("response", "reward", "score"),
    [(GOOD, 1.5, 1.0), (WRONG, 1.1, 0.6), (WAVERING, 1.25, 1.0), ("8", 0.0, 0.0)],
)
def test_the_executor_gets_reward_score_and_logs(url, response, reward, score):
    output = executed(url, response, "8")
    assert output["reward"] == [pytest.approx(reward)]
    assert output["scores"] == [pytest.approx(score)]
    assert set(output["extra_logs"]) >= {"format", "inconsistent", "repetition", "think_tokens"}


def test_a_label_may_say_its_kind(url):
    label = json.dumps({"gold": "B", "kind": "choice"})
    response = "<think> grass is green and blood is red, so B </think> <answer> B </answer>"
    assert executed(url, response, label)["reward"] == [1.5]


def test_a_response_that_cannot_be_scored_has_no_reward(url, monkeypatch):
    """OpenRLHF tries five times, a second apart; what counts here is that it is left with None."""
    real = asyncio.sleep
    monkeypatch.setattr(agent.asyncio, "sleep", lambda _: real(0))
    output = executed(url, GOOD, "many")
    assert output["reward"] is None
    assert output["scores"] is None
