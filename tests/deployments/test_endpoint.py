"""The endpoint answers with verdicts or with a clear refusal, in the format that was asked for."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

import httpx
import msgpack
import pytest
from fastapi import Request

from deployments import settings as endpoint_settings
from deployments.admission import Pace
from deployments.auth import is_loopback
from deployments.judging import SLICE
from deployments.reading import read_body
from deployments.refusal import Refusal
from deployments.settings import Args
from veripo_ray import config
from veripo_ray.errors import ConfigError
from veripo_ray.records import Kind, Verdict
from veripo_ray.verifier import wire
from veripo_ray.verifier.bodies import NDJSON
from veripo_ray.verifier.judges import Case, Judgement, Rules
from veripo_ray.verifier.verify import Item, verify

GOOD = Item(kind=Kind.CHOICE, gold="B", response="<think> so B </think> <answer> B </answer>")
ROW = GOOD.model_dump(mode="json")
PACKED = wire.write_items([GOOD])
MANY = 5 * SLICE  # more than are judged side by side


def verdicts(reply: httpx.Response) -> list[Verdict]:
    assert reply.status_code == 200, reply.text
    packed = reply.headers["content-type"] == wire.MSGPACK
    message = msgpack.unpackb(reply.content) if packed else reply.json()
    return [Verdict.model_validate(row) for row in message["verdicts"]]


class Waiting:
    """A judge that holds every case until it is let go, and counts the cases."""

    name = "waiting"

    def __init__(self) -> None:
        self.go, self.begun, self.cancelled = asyncio.Event(), 0, 0

    async def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        self.begun += len(cases)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += len(cases)
            raise
        return [Judgement(True, "waited") for _ in cases]

    async def until(self, cases: int) -> None:
        async with asyncio.timeout(20):
            while self.begun < cases:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("accept", [None, wire.JSON, wire.MSGPACK, "*/*"])
@pytest.mark.parametrize("sent", [None, wire.JSON, wire.MSGPACK])
def test_formats_are_negotiated(local, sent, accept):
    body = PACKED if sent == wire.MSGPACK else json.dumps({"items": [ROW]}).encode()
    headers = {k: v for k, v in {"content_type": sent, "accept": accept}.items() if v}
    reply = local().post("/v1/verify", body, **headers)
    wanted = accept if accept in (wire.JSON, wire.MSGPACK) else (sent or wire.JSON)
    assert reply.headers["content-type"] == wanted
    assert verdicts(reply) == verify([GOOD], Rules())


def test_one_bad_item_leaves_the_others_their_verdicts(local):
    rows = [ROW, {"kind": "essay"}, 3, ROW | {"gold": "nonsense"}, ROW]
    first, essay, number, gold, last = verdicts(local().post("/v1/verify", {"items": rows}))
    assert first == last == verify([GOOD], Rules())[0]
    assert "kind" in essay.error
    assert "not valid" in number.error
    assert "gold answer" in gold.error


def test_many_items_come_back_in_order(local):
    items = [GOOD.model_copy(update={"gold": "ABC"[n % 3]}) for n in range(1000)]
    reply = local().post("/v1/verify", wire.write_items(items), content_type=wire.MSGPACK)
    assert [verdict.correct for verdict in verdicts(reply)] == [n % 3 == 1 for n in range(1000)]


def test_json_lines_hold_each_item_once(local, logged):
    rows = [ROW | {"gold": "ABC"[n % 3]} for n in range(200)] + [{"kind": "essay"}]
    reply = local().post("/v1/verify", {"items": rows}, accept=NDJSON)
    assert reply.headers["content-type"] == NDJSON
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert sorted(line["index"] for line in lines) == list(range(201))
    found = {line["index"]: Verdict.model_validate(line["verdict"]) for line in lines}
    assert [found[n].correct for n in range(200)] == [n % 3 == 1 for n in range(200)]
    assert "kind" in found[200].error
    assert (logged.records[0].items, logged.records[0].item_errors) == (201, 1)


def test_json_lines_come_while_others_are_at_work(local):
    """Ill-formed responses need no judge: their lines are there while the others still wait."""
    judge = Waiting()
    rows = [ROW] * SLICE + [ROW | {"response": "none"}] * SLICE
    body = json.dumps({"items": rows}).encode()
    seen: list[bytes] = []

    async def ask() -> None:
        first = asyncio.Event()

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, object]) -> None:
            if message.get("body"):
                seen.append(message["body"])
                first.set()

        scope = {
            "type": "http", "method": "POST", "path": "/v1/verify", "query_string": b"",
            "headers": [(b"accept", NDJSON.encode())], "http_version": "1.1",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
        }  # fmt: skip
        asking = asyncio.create_task(local(judge=judge).api(scope, receive, send))
        async with asyncio.timeout(20):
            await first.wait()
        assert {json.loads(line)["index"] for line in seen[0].splitlines()} == set(
            range(SLICE, 2 * SLICE)
        )
        judge.go.set()
        await asking

    asyncio.run(ask())
    assert sum(len(chunk.splitlines()) for chunk in seen) == 2 * SLICE


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"{", {}, 400, "application/json"),
        (b"[1]", {}, 400, "items"),
        (b"\xc1", {"content_type": wire.MSGPACK}, 400, "application/msgpack"),
        (b"<x/>", {"content_type": "text/xml"}, 415, "text/xml"),
        (b"x" * 2000, {}, 413, "1048 bytes"),
        (b"x" * 2000, {"content_length": "12"}, 413, "1048 bytes"),
        (b'{"items": [' + b"0," * 20 + b"0]}", {}, 413, "21 items, more than 10"),
    ],
)
def test_refusals_say_what_is_wrong_and_what_to_do(local, body, headers, status, said):
    args = Args(max_body_mb=0.001, max_items=10)
    reply = local(args).post("/v1/verify", body, **headers)
    assert reply.status_code == status
    assert said in reply.json()["error"]
    assert reply.json()["fix"]


@pytest.mark.parametrize(("path", "status"), [("/v2/verify", 404), ("/healthz", 405)])
def test_what_there_is_not_is_refused_in_the_same_shape(local, path, status):
    reply = local().post(path, b"")
    assert reply.status_code == status
    assert reply.json().keys() == {"error", "fix"}


def test_a_body_without_a_length_is_refused_while_it_streams():
    """The real reader, fed by hand: of a thousand chunks it takes ten and the one too many."""
    taken = 0

    async def receive() -> dict[str, object]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": taken < 1000}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(Refusal) as caught:
        asyncio.run(read_body(request, 10_000))
    assert caught.value.status == 413
    assert taken == 11


def test_work_that_takes_too_long_is_given_up_and_health_answers_meanwhile(local):
    judge = Waiting()

    async def ask() -> tuple[httpx.Response, dict[str, str]]:
        here = local(Args(timeout_s=2), judge=judge)
        slow = asyncio.create_task(here.apost("/v1/verify", {"items": [ROW] * MANY}))
        await judge.until(1)
        health = await here.endpoint.healthz()
        return await slow, health

    reply, health = asyncio.run(ask())
    assert reply.status_code == 504
    assert "2 s" in reply.json()["error"]
    assert health == {"status": "ok", "judge": "rules"}
    assert judge.cancelled == judge.begun < MANY  # the slices behind them were never begun


def test_a_stream_that_takes_too_long_says_so_for_each_item_that_is_missing(local):
    judge = Waiting()
    rows = [ROW] * 100 + [ROW | {"response": "none"}] * 64
    reply = local(Args(timeout_s=2), judge=judge).post("/v1/verify", {"items": rows}, accept=NDJSON)
    lines = {line["index"]: line["verdict"] for line in map(json.loads, reply.text.splitlines())}
    late = {
        i for i, v in lines.items() if "no verdict within 2 s" in (v["checks"][0]["error"] or "")
    }
    assert sorted(lines) == list(range(164))
    assert set(range(64)) <= late
    assert not late & set(range(128, 164))


def test_what_is_beyond_a_replicas_requests_is_refused_at_once_and_the_rest_finish(local):
    judge = Waiting()

    async def ask() -> list[httpx.Response]:
        here = local(Args(max_requests=3), judge=judge)
        admitted = [asyncio.create_task(here.apost("/v1/verify", {"items": [ROW]})) for _ in "abc"]
        await judge.until(3)
        refused = [await here.apost("/v1/verify", b"not even read") for _ in "de"]
        judge.go.set()
        return [*refused, *[await task for task in admitted], await here.apost("/v1/verify", PACKED,
                content_type=wire.MSGPACK)]  # fmt: skip

    replies = asyncio.run(ask())
    assert [reply.status_code for reply in replies] == [429, 429, 200, 200, 200, 200]
    assert int(replies[0].headers["retry-after"]) >= 1
    assert "3 requests are at work" in replies[0].json()["error"]


def test_what_is_beyond_a_replicas_items_is_refused_but_the_largest_request_is_not(local):
    judge = Waiting()

    async def ask() -> list[int]:
        here = local(Args(max_items=50, max_pending_items=60), judge=judge)
        first = asyncio.create_task(here.apost("/v1/verify", {"items": [ROW] * 50}))
        await judge.until(50)
        second = await here.apost("/v1/verify", {"items": [ROW] * 11})
        judge.go.set()
        third = await here.apost("/v1/verify", {"items": [ROW] * 10})
        return [(await first).status_code, second.status_code, third.status_code]

    assert asyncio.run(ask()) == [200, 429, 200]


async def slow_items(here: Any, judge: Waiting) -> None:
    """Let the endpoint see that an item takes 30 ms."""
    slow = asyncio.create_task(here.apost("/v1/verify", {"items": [ROW] * 10}))
    await judge.until(10)
    await asyncio.sleep(0.3)
    judge.go.set()
    await slow
    judge.go.clear()


def test_who_would_wait_too_long_is_refused_at_once_and_admitted_when_the_work_is_done(local):
    judge = Waiting()

    async def ask() -> list[httpx.Response]:
        here = local(Args(max_wait_s=1.0), judge=judge)
        await slow_items(here, judge)
        many = asyncio.create_task(here.apost("/v1/verify", {"items": [ROW] * 100}))
        await judge.until(74)
        refused = await here.apost("/v1/verify", b"not even read")
        judge.go.set()
        return [refused, await many, await here.apost("/v1/verify", {"items": [ROW]})]

    refused, many, after = asyncio.run(ask())
    assert [reply.status_code for reply in (refused, many, after)] == [429, 200, 200]
    assert "what is at work takes" in refused.json()["error"]
    assert int(refused.headers["retry-after"]) >= 3


def test_of_requests_that_come_at_once_those_are_refused_that_would_wait_for_the_others(local):
    judge = Waiting()

    async def ask() -> list[int]:
        here = local(Args(max_wait_s=1.0), judge=judge)
        await slow_items(here, judge)
        burst = [
            asyncio.create_task(here.apost("/v1/verify", {"items": [ROW] * 50})) for _ in "abc"
        ]
        await asyncio.wait(burst, return_when=asyncio.FIRST_COMPLETED)
        judge.go.set()
        return sorted([(await reply).status_code for reply in burst])

    assert asyncio.run(ask()) == [200, 429, 429]


def test_the_pace_is_that_of_the_time_at_work_and_forgets():
    now = 0.0
    pace = Pace(lambda: now)
    assert pace.seconds_per_item == 0
    for _ in range(3):  # idle in between
        now += 1000
        pace.begins()
        now += 2
        pace.finished(10)
        now += 1
        pace.finished(5)
    assert pace.seconds_per_item == pytest.approx(0.2)
    for _ in range(10):
        pace.begins()
        now += 10
        pace.finished(10)
    assert pace.seconds_per_item == pytest.approx(1.0, rel=0.01)


def test_a_client_that_goes_is_forgotten_and_its_work_stops(local):
    """As Serve does it: the request's task is cancelled."""
    judge = Waiting()

    async def ask() -> httpx.Response:
        here = local(Args(max_requests=1), judge=judge)
        gone = asyncio.create_task(here.apost("/v1/verify", {"items": [ROW] * MANY}))
        await judge.until(1)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        judge.go.set()
        return await here.apost("/v1/verify", {"items": [ROW]})

    assert asyncio.run(ask()).status_code == 200
    assert 0 < judge.cancelled < MANY


def test_work_that_was_given_up_tells_nothing_of_the_pace(local):
    here = local(Args(timeout_s=1), judge=Waiting())
    assert here.post("/v1/verify", {"items": [ROW] * 100}).status_code == 504
    assert here.endpoint._admission._pace.seconds_per_item == 0
    assert here.post("/v1/verify", {"items": [{}] * 100}).status_code == 200
    assert here.endpoint._admission._pace.seconds_per_item > 0.01


def test_the_held_out_judge_is_another_one(local):
    here = local(Args(heldout="tinyworld"))
    prose = ROW | {
        "response": "<think> It is red, so the answer is B. </think> <answer> B </answer>"
    }
    (curating,) = verdicts(here.post("/v1/verify", {"items": [prose]}))
    (heldout,) = verdicts(here.post("/v1/verify?judge=heldout", {"items": [prose]}))
    assert curating.consistent is True
    assert heldout.consistent is None
    assert "tiny world" in heldout["consistency"].reason


@pytest.mark.parametrize(
    ("asked", "fix"), [("heldout", "heldout=tinyworld"), ("oracle", "judge=heldout")]
)
def test_a_judge_that_there_is_not_is_refused_with_the_fix(local, asked, fix):
    reply = local().post(f"/v1/verify?judge={asked}", {"items": [ROW]})
    assert reply.status_code == 400
    assert asked in reply.json()["error"]
    assert fix in reply.json()["fix"]


def test_info_tells_the_breaker_of_a_committees_member_from_the_held_out_judges(local):
    nobody = config.OpenAiJudge(url="http://127.0.0.1:9/v1", model="m", attempts=1)
    judges = config.Judges(
        openai=nobody.model_copy(update={"breaker_failures": 1}),
        committee=config.Committee(members=("rules", "openai")),
    )
    endpoint = local(Args(judge="committee", heldout="openai", judges=judges))
    (verdict,) = verdicts(endpoint.post("/v1/verify?judge=heldout", {"items": [ROW]}))
    assert verdict["consistency"].error
    states = endpoint.get("/v1/info").json()["breakers"]
    assert states == {"committee.openai": "closed", "openai": "open"}


def test_info_says_what_the_endpoint_goes_by(local):
    args = Args(heldout="tinyworld", checks=config.Checks(max_repetition=0.4), max_items=7)
    info = local(args).get("/v1/info").json()
    assert (info["judge"], info["heldout"]) == ("rules", "tinyworld")
    assert info["checks"]["max_repetition"] == 0.4
    assert info["limits"]["max_items"] == 7
    assert info["versions"].keys() == {"veripo-ray", "ray", "python"}


TOKEN = "correct horse battery staple"


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401),
        ("Bearer ", 401),
        ("Bearer correct horse battery stapl", 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
    ],
)
def test_only_the_token_opens_the_endpoint(local, given, status):
    here = local(token=TOKEN)
    headers = {"authorization": given} if given is not None else {}
    replies = [
        here.post("/v1/verify", {"items": [ROW]}, **headers),
        here.post("/v1/pairs", {"questions": []}, **headers),
        here.get("/v1/info", **headers),
    ]
    assert {reply.status_code for reply in replies} == {status}
    if status == 401:
        assert all(reply.headers["www-authenticate"].startswith("Bearer") for reply in replies)


def test_a_token_that_is_no_ascii_is_refused_not_a_fault(local):
    async def ask() -> int:
        here = local(token=TOKEN)
        transport = httpx.ASGITransport(here.api)
        async with httpx.AsyncClient(transport=transport, base_url="http://v") as http:
            headers = {b"authorization": "Bearer \u00fc\u00df".encode()}
            return (await http.get("/v1/info", headers=headers)).status_code

    assert asyncio.run(ask()) == 401


def test_the_token_is_asked_before_the_body_is_read_and_never_for_health(local):
    here = local(Args(max_body_mb=0.001), token=TOKEN)
    assert here.post("/v1/verify", b"x" * 5000).status_code == 401
    assert here.get("/healthz").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("localhost", True), ("::1", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.7", False), ("verifier.example", False)],
)  # fmt: skip
def test_only_loopback_is_private(host, loopback):
    assert is_loopback(host) is loopback


class Kept(logging.Handler):
    """Keeps the records of the endpoint's log."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Kept:
    kept, log = Kept(), logging.getLogger("ray.serve.veripo")
    monkeypatch.setattr(log, "handlers", [kept])
    monkeypatch.setattr(log, "level", logging.INFO)
    return kept


def test_a_request_has_one_id_in_its_reply_and_its_log(local, logged):
    here = local()
    replies = [
        here.post("/v1/verify", {"items": [ROW, 3]}, x_request_id="run-7/41"),
        here.post("/v1/verify", b"{", x_request_id="two words"),
    ]
    first, second = logged.records
    assert replies[0].headers["x-request-id"] == first.request_id == "run-7/41"
    assert replies[1].headers["x-request-id"] == second.request_id != "two words"
    assert (first.path, first.status, first.items, first.item_errors) == ("/v1/verify", 200, 2, 1)
    assert (second.status, second.items) == (400, 0)
    assert first.seconds >= 0


def test_settings_may_be_written_with_dots_and_as_text():
    args = endpoint_settings.read(
        {
            "replicas": "2",
            "checks.max_repetition": "0.5",
            "judge": "committee",
            "judges.committee.members": "[rules, tinyworld]",
            "tokenizer": "null",
        }
    )
    assert (args.replicas, args.checks.max_repetition, args.tokenizer) == (2, 0.5, None)
    assert args.judges.committee.members == ("rules", "tinyworld")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"colour": "red"}, "colour: unknown setting"),
        ({"juge": "rules"}, "did you mean judge"),
        ({"judge": "oracle"}, "judge"),
        ({"replicas": 0}, "replicas"),
        ({"judge": "openai"}, "judges.openai.url"),
        ({"heldout": "vllm"}, "judges.vllm.model"),
        ({"heldout": "rules"}, "held out from itself"),
        ({"max_items": 100, "max_pending_items": 10}, "max_pending_items = 10"),
        ({"replicas": 4, "max_replicas": 2}, "max_replicas = 2"),
        ({"checks": "{"}, "checks"),
    ],
)
def test_a_wrong_setting_is_named_with_those_there_are(wrong, said):
    with pytest.raises(ConfigError, match=said) as caught:
        endpoint_settings.read(wrong)
    assert "max_body_mb" in caught.value.fix
