"""The endpoint answers strangers with verdicts or with a clear refusal, whatever they send."""

from __future__ import annotations

import asyncio
import json
import threading

import httpx
import msgpack
import pytest
from fastapi import Request
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments import settings as endpoint_settings
from deployments.endpoint import Endpoint, Refusal, _read_body
from deployments.settings import Args
from veripo_ray.errors import ConfigError
from veripo_ray.records import Kind, Verdict
from veripo_ray.verifier import wire
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.verify import Item, verify

GOOD = Item(kind=Kind.CHOICE, gold="B", response="<think> so B </think> <answer> B </answer>")
BODY = json.dumps({"items": [GOOD.model_dump(mode="json")]}).encode()


def post(args: Args, body: bytes, **headers: str) -> httpx.Response:
    return asyncio.run(apost(Endpoint(args), body, **headers))


async def apost(endpoint: Endpoint, body: bytes, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(endpoint.api())
    async with httpx.AsyncClient(transport=transport, base_url="http://verifier") as http:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await http.post("/v1/verify", content=body, headers=named)


def verdicts(reply: httpx.Response) -> list[Verdict]:
    assert reply.status_code == 200, reply.text
    packed = reply.headers["content-type"] == wire.MSGPACK
    message = msgpack.unpackb(reply.content) if packed else reply.json()
    return [Verdict.model_validate(row) for row in message["verdicts"]]


@pytest.mark.parametrize("accept", [None, wire.JSON, wire.MSGPACK, "*/*"])
@pytest.mark.parametrize("sent", [None, wire.JSON, wire.MSGPACK])
def test_formats_are_negotiated(sent, accept):
    body = wire.write_items([GOOD]) if sent == wire.MSGPACK else BODY
    headers = {k: v for k, v in {"content_type": sent, "accept": accept}.items() if v}
    reply = post(Args(), body, **headers)
    wanted = accept if accept in (wire.JSON, wire.MSGPACK) else (sent or wire.JSON)
    assert reply.headers["content-type"] == wanted
    assert verdicts(reply) == verify([GOOD], Rules())


def test_one_bad_item_leaves_the_others_their_verdicts():
    row = GOOD.model_dump(mode="json")
    rows = [row, {"kind": "essay"}, 3, row | {"gold": "nonsense"}, row]
    first, essay, number, gold, last = verdicts(post(Args(), json.dumps({"items": rows}).encode()))
    assert first == last == verify([GOOD], Rules())[0]
    assert "kind" in essay.error
    assert "not valid" in number.error
    assert "gold answer" in gold.error


def test_many_items_come_back_in_order():
    items = [GOOD.model_copy(update={"gold": "ABC"[n % 3]}) for n in range(200)]
    reply = post(Args(), wire.write_items(items), content_type=wire.MSGPACK)
    assert [verdict.correct for verdict in verdicts(reply)] == [n % 3 == 1 for n in range(200)]


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
def test_refusals_say_what_is_wrong(body, headers, status, said):
    reply = post(Args(max_body_mb=0.001, max_items=10), body, **headers)
    assert reply.status_code == status
    assert said in reply.text


def test_a_body_without_a_length_is_refused_while_it_streams():
    """The real reader, fed by hand: of a thousand chunks it takes ten and the one too many."""
    taken = 0

    async def receive() -> dict[str, object]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": taken < 1000}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(Refusal) as caught:
        asyncio.run(_read_body(request, 10_000))
    assert caught.value.status == 413
    assert taken == 11


def test_work_that_takes_too_long_is_given_up_and_health_answers_meanwhile():
    endpoint, finish, begun = Endpoint(Args(timeout_s=0.5)), threading.Event(), []

    class Slow(Rules):
        def judge_now(self, cases):
            begun.append(len(cases))
            finish.wait(20)
            return super().judge_now(cases)

    endpoint._judge = Slow()
    items = wire.write_items([GOOD] * 300)

    async def ask() -> tuple[httpx.Response, dict[str, str]]:
        slow = asyncio.create_task(apost(endpoint, items, content_type=wire.MSGPACK))
        await asyncio.sleep(0.1)
        return await slow, await endpoint.healthz()

    try:
        reply, health = asyncio.run(ask())
    finally:
        finish.set()
    assert reply.status_code == 504
    assert health == {"status": "ok", "judge": "rules"}
    assert begun == [64]  # the slices behind it were never begun


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=80)
    | st.builds(
        lambda v: msgpack.packb({"items": v}), st.lists(st.binary(max_size=4) | st.integers(0, 9))
    )
    | st.builds(lambda v: json.dumps({"items": v}).encode(), st.lists(st.floats() | st.text())),
    st.sampled_from([wire.JSON, wire.MSGPACK]),
)
def test_no_body_is_the_servers_fault(body, media_type):
    assert post(Args(), body, content_type=media_type).status_code in (200, 400, 413)


def test_settings_may_be_written_with_dots_and_as_text():
    args = endpoint_settings.read({"replicas": "2", "checks.max_repetition": "0.5"})
    assert (args.replicas, args.checks.max_repetition) == (2, 0.5)


@pytest.mark.parametrize("wrong", [{"colour": "red"}, {"judge": "oracle"}, {"replicas": 0}])
def test_a_wrong_setting_is_named_with_those_there_are(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))) as caught:
        endpoint_settings.read(wrong)
    assert "max_body_mb" in caught.value.fix
