"""The client waits for a verifier that is busy, and gives up in time with a reason."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from veripo_ray.errors import DataError, ResourceError
from veripo_ray.records import Kind
from veripo_ray.verifier import wire
from veripo_ray.verifier.client import VerifierClient
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.verify import Item, verify

ITEM = Item(kind=Kind.CHOICE, gold="B", response="<think> so B </think> <answer> B </answer>")


def answer(request: httpx.Request) -> httpx.Response:
    items = wire.read_items(request.content, wire.MSGPACK, 1000)
    return httpx.Response(200, content=wire.write_verdicts(verify(items, Rules()), wire.MSGPACK))


class Moody:
    """Answers with `refusals` first, each a status or an exception, then as it should."""

    def __init__(self, *refusals: int | Exception) -> None:
        self.refusals, self.sizes = list(refusals), []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.refusals:
            refusal = self.refusals.pop(0)
            if isinstance(refusal, Exception):
                raise refusal
            return httpx.Response(refusal, text="not now", headers={"retry-after": "0"})
        if request.url.path.endswith("/healthz"):
            return httpx.Response(200, json={"status": "ok"})
        self.sizes.append(len(wire.read_items(request.content, wire.MSGPACK, 1000)))
        return answer(request)


def client(moody: Moody, timeout: float = 20.0, **more) -> VerifierClient:
    transport = httpx.MockTransport(moody)
    return VerifierClient("http://verifier:1/", timeout, transport=transport, **more)


@pytest.mark.parametrize(
    "refusal", [429, 503, httpx.ConnectError("refused"), httpx.ReadTimeout("")]
)
def test_a_passing_trouble_is_waited_out(refusal):
    assert client(Moody(refusal)).verify([ITEM]) == verify([ITEM], Rules())


def test_long_lists_go_in_batches_and_come_back_in_order():
    moody = Moody()
    items = [ITEM.model_copy(update={"gold": "ABCDE"[n % 5]}) for n in range(10)]
    assert client(moody, batch=4).verify(items) == verify(items, Rules())
    assert moody.sizes == [4, 4, 2]


def test_nothing_to_verify_needs_no_request():
    assert client(Moody(500)).verify([]) == []


def test_the_async_way_is_the_same():
    assert asyncio.run(client(Moody(503)).averify([ITEM])) == verify([ITEM], Rules())


def test_it_gives_up_in_time_and_names_the_address():
    with pytest.raises(ResourceError, match=r"http://verifier:1 gave no answer within 0\.3") as got:
        client(Moody(*[503] * 100), timeout=0.3).verify([ITEM])
    assert "503" in got.value.problem
    assert "verifier.timeout_s" in got.value.fix


def test_the_async_way_gives_up_too():
    with pytest.raises(ResourceError, match="refused"):
        asyncio.run(
            client(Moody(*[httpx.ConnectError("refused")] * 100), timeout=0.3).averify([ITEM])
        )


@pytest.mark.parametrize("status", [400, 404, 413, 415])
def test_a_refusal_is_not_repeated(status):
    moody = Moody(status)
    with pytest.raises(DataError, match=f"http://verifier:1: it answered {status}: not now"):
        client(moody).verify([ITEM])
    assert moody.sizes == []


def test_a_reply_that_is_no_verdict_is_an_error():
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=b"<html>"))
    with pytest.raises(DataError, match="http://elsewhere"):
        VerifierClient("http://elsewhere", 5, transport=transport).verify([ITEM])


def test_ready_waits_until_the_verifier_is_there():
    asyncio.run(client(Moody(httpx.ConnectError("refused"), 503)).ready())
    with pytest.raises(ResourceError, match="http://verifier:1"):
        asyncio.run(client(Moody(*[httpx.ConnectError("refused")] * 100), timeout=0.3).ready())
