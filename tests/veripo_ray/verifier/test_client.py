"""The client waits for a verifier that is busy, and gives up in time with a reason."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.errors import DataError, ResourceError
from veripo_ray.records import Kind
from veripo_ray.verifier import wire
from veripo_ray.verifier.bodies import NDJSON
from veripo_ray.verifier.client import TOKEN_ENV, VerifierClient
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.retrying import Attempts, TryAgainError
from veripo_ray.verifier.shapes import VerdictLine
from veripo_ray.verifier.verify import Item, verify

ITEM = Item(kind=Kind.CHOICE, gold="B", response="<think> so B </think> <answer> B </answer>")


def answer(request: httpx.Request) -> httpx.Response:
    items = wire.read_items(request.content, wire.MSGPACK, 1000)
    return httpx.Response(200, content=wire.write_verdicts(verify(items, Rules()), wire.MSGPACK))


class Moody:
    """Answers with `refusals` first, each a status or an exception, then as it should."""

    def __init__(self, *refusals: int | Exception) -> None:
        self.refusals, self.sizes = list(refusals), []
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.refusals:
            refusal = self.refusals.pop(0)
            if isinstance(refusal, Exception):
                raise refusal
            body = {"error": "not now", "fix": "come back"}
            return httpx.Response(refusal, json=body, headers={"retry-after": "0"})
        if request.url.path.endswith("/healthz"):
            return httpx.Response(200, json={"status": "ok"})
        self.sizes.append(len(wire.read_items(request.content, wire.MSGPACK, 1000)))
        return answer(request)


class Torn(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A reply that breaks off behind its parts."""

    def __init__(self, *parts: bytes, broken: bool) -> None:
        self.parts, self.broken = parts, broken

    def __iter__(self) -> Iterator[bytes]:
        yield from self.parts
        if self.broken:
            raise httpx.RemoteProtocolError("peer closed connection")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


class Streaming:
    """Answers in JSON lines, the last item first; its first replies break off after `cuts` lines,
    in the middle of the next."""

    def __init__(self, *cuts: int, broken: bool = True) -> None:
        self.cuts, self.broken, self.asked = list(cuts), broken, []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        items = wire.read_items(request.content, wire.MSGPACK, 1000)
        self.asked.append(len(items))
        lines = [
            VerdictLine(index=index, verdict=verdict).model_dump_json().encode() + b"\n"
            for index, verdict in reversed(list(enumerate(verify(items, Rules()))))
        ]
        headers = {"content-type": NDJSON}
        if not self.cuts:
            return httpx.Response(200, headers=headers, stream=Torn(*lines, broken=False))
        cut = self.cuts.pop(0)
        parts = (*lines[:cut], lines[cut][:50])
        return httpx.Response(200, headers=headers, stream=Torn(*parts, broken=self.broken))


def client(moody: Moody | Streaming, timeout: float = 20.0, **more) -> VerifierClient:
    transport = httpx.MockTransport(moody)
    return VerifierClient("http://verifier:1/", timeout, transport=transport, **more)


@pytest.mark.parametrize(
    "refusal",
    [408, 429, 500, 502, 503, 504, httpx.ConnectError("refused"), httpx.ReadTimeout("")],
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


@pytest.mark.parametrize("status", [400, 401, 404, 413, 415, 422])
def test_a_refusal_is_not_repeated(status):
    moody = Moody(status)
    with pytest.raises(DataError, match=f"http://verifier:1: it answered {status}: not now") as got:
        client(moody).verify([ITEM])
    assert got.value.fix == "come back"
    assert len(moody.requests) == 1


def test_a_reply_that_is_no_verdict_is_an_error():
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=b"<html>"))
    with pytest.raises(DataError, match="http://elsewhere"):
        VerifierClient("http://elsewhere", 5, transport=transport).verify([ITEM])


def test_ready_waits_until_the_verifier_is_there():
    asyncio.run(client(Moody(httpx.ConnectError("refused"), 503)).ready())
    with pytest.raises(ResourceError, match="http://verifier:1"):
        asyncio.run(client(Moody(*[httpx.ConnectError("refused")] * 100), timeout=0.3).ready())


def test_it_waits_as_long_as_it_is_asked_to():
    slept: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", slept.append)
        busy = httpx.Response(429, headers={"retry-after": "7"})
        replies = iter([busy, busy])
        transport = httpx.MockTransport(lambda request: next(replies, None) or answer(request))
        VerifierClient("http://v", 60, transport=transport).verify([ITEM])
    assert len(slept) == 2
    assert all(seconds >= 7 for seconds in slept)


def test_waits_grow_with_jitter_and_never_pass_the_deadline():
    attempts = Attempts("http://v", 30)
    waits = [attempts.wait_s(TryAgainError("busy")) for _ in range(12)]
    assert 0.05 <= waits[0] <= 0.15
    assert all(2.5 <= wait <= 7.5 for wait in waits[6:])
    assert len(set(waits)) == 12
    assert attempts.wait_s(TryAgainError("busy", after=900)) <= 30
    assert 0 < attempts.timeout_s <= 30


@pytest.mark.parametrize("judge", [None, "heldout"])
def test_the_judge_that_is_asked_and_the_token_travel_along(judge, monkeypatch):
    moody = Moody()
    client(moody, judge=judge, token="from the caller").verify([ITEM])
    monkeypatch.setenv(TOKEN_ENV, "from the environment")
    client(moody, judge=judge).verify([ITEM])
    monkeypatch.delenv(TOKEN_ENV)
    client(moody, judge=judge).verify([ITEM])
    assert [request.url.params.get("judge") for request in moody.requests] == [judge] * 3
    assert [request.headers.get("authorization") for request in moody.requests] == [
        "Bearer from the caller",
        "Bearer from the environment",
        None,
    ]


def test_one_client_keeps_its_connection():
    """Seen by a server that counts them."""
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                size = int(head.partition("content-length: ")[2].split()[0])
                request = httpx.Request("POST", "http://v", content=await reader.readexactly(size))
                body = answer(request).content
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    async def ask() -> tuple[int, int]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with VerifierClient(url, 20, batch=1) as kept:
            for _ in range(3):
                await kept.averify([ITEM, ITEM])
            with_one = len(connections)
        for _ in range(3):
            await VerifierClient(url, 20).averify([ITEM])
        server.close()
        return with_one, len(connections)

    assert asyncio.run(ask()) == (1, 4)


def streamed(client: VerifierClient, items: list[Item], *, blocking: bool) -> list:
    async def take() -> list:
        return [line async for line in client.astream(items)]

    return list(client.stream(items)) if blocking else asyncio.run(take())


both = pytest.mark.parametrize("blocking", [True, False])


@both
@pytest.mark.parametrize("broken", [True, False])
def test_a_stream_that_breaks_goes_on_where_it_broke(blocking, broken):
    server = Streaming(3, 0, 4, broken=broken)
    items = [ITEM.model_copy(update={"gold": "ABCDE"[n % 5]}) for n in range(10)]
    got = streamed(client(server), items, blocking=blocking)
    assert server.asked == [10, 7, 7, 3]
    assert sorted(index for index, _ in got) == list(range(10))
    assert [verdict for _, verdict in sorted(got, key=lambda line: line[0])] == verify(
        items, Rules()
    )


@both
def test_a_long_stream_goes_in_batches(blocking):
    server = Streaming()
    got = streamed(client(server, batch=4), [ITEM] * 10, blocking=blocking)
    assert server.asked == [4, 4, 2]
    assert sorted(index for index, _ in got) == list(range(10))


@both
def test_a_stream_gives_up_in_time(blocking):
    with pytest.raises(ResourceError, match="peer closed"):
        streamed(client(Streaming(*[0] * 99), timeout=0.3), [ITEM] * 2, blocking=blocking)


@both
@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(400, json={"error": "no held-out judge", "fix": "set heldout"}),
        httpx.Response(200, html="<html> no held-out judge </html>"),
    ],
)
def test_what_is_no_stream_is_an_error_with_the_address(blocking, reply):
    transport = httpx.MockTransport(lambda request: httpx.Response(
        reply.status_code, headers=reply.headers, content=reply.content))  # fmt: skip
    asking = VerifierClient("http://elsewhere", 5, transport=transport)
    with pytest.raises(DataError, match="http://elsewhere"):
        streamed(asking, [ITEM], blocking=blocking)


@given(
    st.lists(st.sampled_from("ABC"), max_size=30), st.integers(1, 7), st.lists(st.integers(0, 3))
)
def test_whatever_breaks_each_item_comes_once(golds, batch, cuts):
    """Connections that break between any two lines, at any time."""
    items = [ITEM.model_copy(update={"gold": gold}) for gold in golds]

    class Breaking(Streaming):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            size = len(wire.read_items(request.content, wire.MSGPACK, 1000))
            self.cuts = [min(cut, size - 1) for cut in self.cuts]
            return super().__call__(request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: None)
        got = dict(line for line in client(Breaking(*cuts), batch=batch).stream(items))
    assert [got[index].correct for index in range(len(items))] == [g == "B" for g in golds]
