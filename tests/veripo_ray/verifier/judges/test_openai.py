"""The openai judge against a real server on this machine, and the faults that such a server has.

Whatever goes wrong is an error of its case alone, and never a judgement.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from veripo_ray import config
from veripo_ray.errors import ConfigError
from veripo_ray.records import Kind
from veripo_ray.verifier.judges import Case, Judge, Judgement, breakers, build, close
from veripo_ray.verifier.judges.breaker import State

pytestmark = pytest.mark.asyncio
KEY = "sk-not-for-logs"


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    silent: bool = False  # says nothing until the client goes
    broken_off: bool = False

    def written(self) -> bytes:
        headers = {"content-length": str(len(self.body)), "content-type": "application/json"}
        lines = [f"HTTP/1.1 {self.status} -"]
        lines += [f"{name}: {value}" for name, value in (headers | self.headers).items()]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body


def says(word: str, **probabilities: float) -> Reply:
    top = [{"token": token, "logprob": math.log(p)} for token, p in probabilities.items()]
    logprobs = {"content": [{"token": word, "logprob": -1.0, "top_logprobs": top}]}
    choice = {"index": 0, "message": {"role": "assistant", "content": word}, "logprobs": logprobs}
    return Reply(body=json.dumps({"id": "1", "choices": [choice]}).encode())


YES, SILENCE, BROKEN_OFF = says("yes", yes=0.6, no=0.2), Reply(silent=True), Reply(broken_off=True)


@dataclass
class Server:
    """Answers with `replies` in turn, the last one again and again, or as `by` says of a prompt."""

    replies: list[Reply]
    by: Callable[[str], Reply] | None = None
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    connections: int = 0
    abandoned: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        named = (line.partition(": ") for line in lines[1:] if line)
        headers = {name.lower(): value for name, _, value in named}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.requests.append({"path": lines[0].split()[1], "headers": headers, "body": body})
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.arrived.set()
        await asyncio.sleep(0.002)  # so that requests of one moment are here together
        reply = self._reply(body["messages"][0]["content"])
        if reply.silent:
            await reader.read()
            self.abandoned += 1
        self.at_once -= 1
        if reply.silent or reply.broken_off:
            return False
        writer.write(reply.written())
        await writer.drain()
        return True

    def _reply(self, prompt: str) -> Reply:
        if self.by:
            return self.by(prompt)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@asynccontextmanager
async def serving(
    *replies: Reply, by: Callable[[str], Reply] | None = None
) -> AsyncIterator[Server]:
    server = Server(list(replies), by)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listening.close()


@asynccontextmanager
async def judging(url: str, **settings: Any) -> AsyncIterator[Judge]:
    given = {"url": url, "model": "small", "timeout_s": 5.0, "breaker_failures": 100} | settings
    judge = build("openai", config.Judges(openai=config.OpenAiJudge(**given)))
    try:
        yield judge
    finally:
        await close(judge)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def cases(*names: str) -> list[Case]:
    return [Case(f"{name}?", Kind.CHOICE, ("red", "blue"), "It is B.", "B") for name in names]


async def judged(*replies: Reply, number: int = 1, **settings: Any) -> list[Judgement]:
    async with serving(*replies) as server, judging(server.url, **settings) as judge:
        return await judge.judge(cases(*map(str, range(number))))


async def test_it_asks_for_one_token_and_reads_the_probability_of_yes():
    async with serving(YES) as server, judging(server.url + "/") as judge:
        (judgement,) = await judge.judge(cases("Which"))
    assert (judgement.consistent, judgement.error) == (True, None)
    assert judgement.probability == pytest.approx(0.75)
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["authorization"] == f"Bearer {KEY}"
    asked = request["body"]
    assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("small", 1, 0)
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 20)
    assert "> Which?" in asked["messages"][0]["content"]


async def test_without_log_probabilities_the_word_decides():
    async with serving(says("No")) as server, judging(server.url, logprobs=False) as judge:
        (judgement,) = await judge.judge(cases("Which"))
    assert (judgement.consistent, judgement.probability) == (False, None)
    assert "logprobs" not in server.requests[0]["body"]


async def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    async with serving(YES) as server, judging(server.url) as judge:
        await judge.judge(cases("Which"))
    assert "authorization" not in server.requests[0]["headers"]


async def test_many_cases_share_a_few_connections_and_keep_their_order():
    def by(prompt: str) -> Reply:
        number = int(prompt.split("> ")[1].split("?")[0])
        return says("yes", yes=(number + 1) / 100, no=1 - (number + 1) / 100)

    async with serving(by=by) as server, judging(server.url, parallel=3) as judge:
        both = await asyncio.gather(
            judge.judge(cases(*map(str, range(20)))), judge.judge(cases(*map(str, range(20, 40))))
        )
    found = [judgement.probability for judgements in both for judgement in judgements]
    assert found == pytest.approx([(number + 1) / 100 for number in range(40)])
    assert server.most_at_once == 3
    assert server.connections == 3


@pytest.mark.parametrize("trouble", [Reply(500), Reply(503), Reply(408), Reply(429), BROKEN_OFF])
async def test_a_passing_trouble_is_waited_out(trouble):
    (judgement,) = await judged(trouble, YES)
    assert (judgement.consistent, judgement.error) == (True, None)


async def test_attempts_are_bounded_and_the_last_trouble_is_told():
    trouble = Reply(500, b"out of \n memory")
    async with serving(trouble) as server, judging(server.url, attempts=2) as judge:
        (judgement,) = await judge.judge(cases("Which"))
    assert judgement.consistent is None
    address = server.url.removesuffix("/v1")
    assert judgement.error == (
        f"the judge at {address}: it answered 500: out of memory; given up after 2 attempt(s)"
    )
    assert len(server.requests) == 2


async def test_a_server_that_is_down_is_an_error_of_each_case():
    async with serving(YES) as server:
        pass
    async with judging(server.url, attempts=2) as judge:
        judgements = await judge.judge(cases("a", "b"))
    assert all("ConnectError" in judgement.error for judgement in judgements)
    assert {judgement.consistent for judgement in judgements} == {None}


async def test_a_server_slower_than_the_deadline_is_an_error_and_is_hung_up_on():
    def by(prompt: str) -> Reply:
        return SILENCE if "> slow?" in prompt else YES

    async with serving(by=by) as server, judging(server.url, timeout_s=0.3) as judge:
        fine, slow, after = await judge.judge(cases("fine", "slow", "after"))
        while not server.abandoned:
            await asyncio.sleep(0.01)
    assert (fine.consistent, slow.consistent, after.consistent) == (True, None, True)
    assert "no answer within 0.3 s (judges.openai.timeout_s), in attempt 1" in slow.error


async def test_the_deadline_counts_all_attempts_together():
    settings = {"timeout_s": 0.5, "attempts": 1000}
    async with serving(Reply(500)) as server, judging(server.url, **settings) as judge:
        (judgement,) = await judge.judge(cases("Which"))
    assert "it answered 500; given up after" in judgement.error
    assert 1 <= len(server.requests) < 10


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_what_the_server_asks_to_wait_is_waited(form):
    moments: list[datetime] = []

    def by(prompt: str) -> Reply:
        moments.append(datetime.now(UTC))
        if len(moments) > 1:
            return YES
        date = format_datetime(moments[0] + timedelta(seconds=2), usegmt=True)
        return Reply(429, headers={"retry-after": "1" if form == "seconds" else date})

    async with serving(by=by) as server, judging(server.url) as judge:
        (judgement,) = await judge.judge(cases("Which"))
    assert judgement.consistent is True
    assert moments[1] - moments[0] >= timedelta(seconds=0.99)  # the date has whole seconds


async def test_a_wait_beyond_the_deadline_is_not_begun():
    busy = Reply(429, headers={"retry-after": "3600"})
    async with serving(busy) as server, judging(server.url) as judge:
        (judgement,) = await judge.judge(cases("Which"))
    assert "it answered 429; given up after 1 attempt(s)" in judgement.error
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_not_tried_again_and_the_fix_is_named(status):
    refusal = Reply(status, f"Incorrect API key provided: {KEY}".encode())
    async with serving(refusal) as server, judging(server.url) as judge:
        (judgement,) = await judge.judge(cases("Which"))
    assert f"it answered {status}" in judgement.error
    assert "environment variable OPENAI_API_KEY (judges.openai.api_key_env)" in judgement.error
    assert KEY not in judgement.error
    assert len(server.requests) == 1


async def test_no_error_shows_the_key():
    for reply in (Reply(400, KEY.encode()), Reply(500, f"{KEY}!".encode())):
        (judgement,) = await judged(reply, attempts=1)
        assert "(key)" in judgement.error
        assert KEY not in repr(judgement)


async def test_a_wrong_path_or_model_is_told_apart():
    (judgement,) = await judged(Reply(404, b'{"error": "no such model"}'))
    assert "no such model" in judgement.error
    assert "judges.openai.url" in judgement.error


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"<html>", "no chat completion"),
        (b"", "no chat completion"),
        (b"{}", "choices"),
        (b'{"choices": []}', "choices"),
        (b"[" * 100_000, "no chat completion"),
        (b"\xff\xfe", "no chat completion"),
        (b"x" * 2**19, "over 262144 bytes"),
        (says("maybe", maybe=0.9, yes=0.01).body, "would rather say 'maybe'"),
    ],
)
async def test_garbage_is_an_error_of_its_case_and_not_asked_for_again(body, shown):
    def by(prompt: str) -> Reply:
        return Reply(body=body) if "> bad?" in prompt else YES

    async with serving(by=by) as server, judging(server.url) as judge:
        fine, bad = await judge.judge(cases("fine", "bad"))
    assert (fine.consistent, bad.consistent) == (True, None)
    assert shown in bad.error
    assert len(server.requests) == 2


async def test_a_reply_that_cannot_be_decompressed_is_garbage():
    (judgement,) = await judged(Reply(body=b"no gzip", headers={"content-encoding": "gzip"}))
    assert "cannot be decompressed" in judgement.error


async def test_half_a_surrogate_pair_in_a_response_is_no_trouble():
    async with serving(YES) as server, judging(server.url) as judge:
        (judgement,) = await judge.judge([Case("?", Kind.CHOICE, (), "so \ud800 B", "B")])
    assert judgement.consistent is True
    assert "\ud800" in server.requests[0]["body"]["messages"][0]["content"]


async def test_a_judge_that_keeps_failing_is_left_alone_until_one_trial_succeeds():
    settings = {"attempts": 1, "breaker_failures": 2, "breaker_pause_s": 0.2, "parallel": 8}
    async with serving(Reply(500)) as server, judging(server.url, **settings) as judge:
        breaker = breakers(judge)["openai"]
        await judge.judge(cases("a", "b"))
        assert breaker.state is State.OPEN
        refused = await judge.judge(cases("c", "d"))
        assert len(server.requests) == 2
        assert all("left alone" in judgement.error for judgement in refused)

        await asyncio.sleep(breaker.wait_s + 0.01)
        trial, *others = await judge.judge(cases(*"efgh"))  # one of them tries, and fails
        assert len(server.requests) == 3
        assert "500" in trial.error
        assert all("left alone" in judgement.error for judgement in others)
        assert breaker.state is State.OPEN

        server.replies = [YES]
        await asyncio.sleep(breaker.wait_s + 0.01)
        trial, *others = await judge.judge(cases(*"ijkl"))
        assert len(server.requests) == 4
        assert trial.consistent is True
        assert all(judgement.error for judgement in others)
        assert breaker.state is State.CLOSED
        assert all(j.consistent for j in await judge.judge(cases(*"mnop")))


@pytest.mark.parametrize("reply", [Reply(400, b"too long"), says("maybe", maybe=1.0)])
async def test_bad_cases_do_not_open_the_circuit_for_good_ones(reply):
    settings = {"breaker_failures": 2, "parallel": 1}
    async with (
        serving(reply, reply, reply, YES) as server,
        judging(server.url, **settings) as judge,
    ):
        *bad, good = await judge.judge(cases(*"abcd"))
    assert all(judgement.error for judgement in bad)
    assert good.consistent is True


async def test_cancelled_it_hangs_up_and_counts_it_as_no_failure():
    settings = {"breaker_failures": 1, "parallel": 2}
    async with serving(SILENCE) as server, judging(server.url, **settings) as judge:
        asked = asyncio.create_task(judge.judge(cases(*"abcdef")))
        await server.arrived.wait()
        while server.at_once < 2:
            await asyncio.sleep(0.001)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        while server.abandoned < 2:
            await asyncio.sleep(0.001)
        assert len(server.requests) == 2
        assert breakers(judge)["openai"].state is State.CLOSED
        server.replies = [YES]
        assert [j.consistent for j in await judge.judge(cases("again"))] == [True]


async def test_closed_it_can_be_asked_again_also_from_another_event_loop():
    async with serving(YES) as server, judging(server.url) as judge:
        for _ in range(2):
            assert [j.consistent for j in await judge.judge(cases("a"))] == [True]
            await close(judge)

        def elsewhere() -> Sequence[Judgement]:
            async def go() -> Sequence[Judgement]:
                try:
                    return await judge.judge(cases("b"))
                finally:
                    await close(judge)

            return asyncio.run(go())

        assert [j.consistent for j in await asyncio.to_thread(elsewhere)] == [True]
        assert [j.consistent for j in await judge.judge(cases("c"))] == [True]


@pytest.mark.parametrize("url", ["host:8000/v1", "ftp://host/v1", "http://", "/v1"])
async def test_an_address_that_is_none_is_refused_at_once(url):
    with pytest.raises(ConfigError, match=r"judges\.openai\.url"):
        build("openai", config.Judges(openai=config.OpenAiJudge(url=url, model="m")))


@pytest.mark.parametrize("key", ["sk-\nx", "sk-\u00e9"])
async def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    settings = config.Judges(openai=config.OpenAiJudge(url="http://host/v1", model="m"))
    with pytest.raises(ConfigError, match="environment variable OPENAI_API_KEY") as error:
        build("openai", settings)
    assert "sk-" not in str(error.value)
