"""Whatever a stranger sends to whichever route, the answer is a clear refusal or a reply: never the
server's fault, and nothing is kept of it."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import logging
from typing import Any

import httpx
import msgpack
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments import docs
from deployments.settings import Args, Rewards
from veripo_ray.verifier.bodies import JSON, MSGPACK, NDJSON
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.shapes import Refused
from veripo_ray.verifier.verify import Item, verify

JUDGED = verify([Item.model_validate(row) for row in docs.VERIFY["items"]], Rules())
(ASKED,) = docs.PAIRS["questions"]
WITH_VERDICTS = ASKED | {"verdicts": [verdict.model_dump(mode="json") for verdict in JUDGED]}
EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/verify": docs.VERIFY,
    "/v1/pairs": {"questions": [ASKED, WITH_VERDICTS], "seed": 0},
    "/v1/score": docs.SCORE,
    "/get_reward": docs.REWARD,
}
ARGS = Args(max_items=16, max_body_mb=0.1, rewards=Rewards(inconsistency_penalty=0.5))

odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["choice", "numeric", "math", "</think>", "{", '{"gold": 1}', "\ud800", "9" * 5000]
    )
    | st.binary(max_size=10)
    | st.integers(10**20, 10**40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.just("kind"), inner, max_size=4)
    ),
    max_leaves=12,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of an example is."""
    inner = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node if isinstance(node, list) else ())
    )
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def take(example: Any, path: tuple[Any, ...]) -> Any:
    return take(example[path[0]], path[1:]) if path else example


def put(example: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(example)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


@st.composite
def almost_right(draw: st.DrawFn, path: str) -> Any:
    """The example of a route with one value of it replaced, or one of a list left out."""
    example = EXAMPLES[path]
    place = draw(st.sampled_from(places(example)))
    whole = take(example, place)
    if isinstance(whole, list) and draw(st.booleans()):
        return put(example, place, whole[1:])
    return put(example, place, draw(odd))


def as_json(value: Any) -> bytes:
    """As Python writes it: NaN, lone surrogates and huge integers included."""
    return json.dumps(value, default=lambda raw: raw.decode("latin1")).encode()


def as_msgpack(value: Any) -> bytes:
    return msgpack.packb(value, default=str, unicode_errors="surrogatepass")


def written(value: Any, media_type: str) -> bytes:
    try:
        return as_msgpack(value) if media_type == MSGPACK else as_json(value)
    except (OverflowError, ValueError, TypeError):  # integers that msgpack has no form for
        return as_json(value)


deep = st.integers(1, 40_000).flatmap(
    lambda n: st.sampled_from([b"[" * n, b'{"a":' * n, b"\x91" * n, b"\x81\xa1a" * n])
)
bombs = st.sampled_from(
    [
        b'{"items": [' + b"[]," * 30_000 + b"[]]}",
        b"\x81\xa5items\xdc\xff\xff" + b"\x90" * 65_535,
        b"\x81\xa5items\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b'{"items": [1e999]}',
        b'{"seed": ' + b"9" * 4300 + b', "questions": []}',
        b'{"seed": ' + b"9" * 4299 + b', "questions": []}',
        b"\xc9\xff\xff\xff\xff",
        b'{"labels": ["' + b"[" * 5000 + b'"], "query": ["a"], "prompts": ["a"]}',
        b'{"text_1": "{\\"gold\\": ' + b"[" * 5000 + b'", "text_2": "x"}',
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes, dict[str, str]]:
    path = draw(st.sampled_from(list(EXAMPLES)))
    media_type = draw(st.sampled_from([JSON, MSGPACK]))
    body = draw(
        st.binary(max_size=200)
        | deep
        | bombs
        | almost_right(path).map(lambda value: written(value, media_type))
        | odd.map(lambda value: written(value, media_type))
    )
    accept = draw(st.sampled_from([JSON, MSGPACK, NDJSON, "*/*", "nonsense"]))
    return path, body, {"content-type": media_type, "accept": accept}


@pytest.fixture
def ask(local, monkeypatch):
    """One endpoint and one event loop for all examples."""
    monkeypatch.setattr(logging.getLogger("ray.serve.veripo"), "disabled", True)
    loop = asyncio.new_event_loop()
    transport = httpx.ASGITransport(local(ARGS).api)  # a fault of the server would be raised
    http = httpx.AsyncClient(transport=transport, base_url="http://verifier", timeout=60)

    def post(path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        return loop.run_until_complete(http.post(path, content=body, headers=headers))

    yield post
    loop.run_until_complete(http.aclose())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@settings(
    max_examples=600,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(requests())
def test_no_body_is_the_servers_fault(ask, request_):
    path, body, headers = request_
    reply = ask(path, body, headers)
    assert reply.status_code in (200, 400, 413, 422), reply.text
    if reply.status_code != 200:
        assert Refused.model_validate(reply.json()).error
    elif reply.headers["content-type"] == JSON:
        json.loads(reply.content, parse_constant=pytest.fail)  # no NaN


def test_nothing_is_kept_of_what_strangers_send(ask):
    bodies = [
        (path, body, {"content-type": kind})
        for path in EXAMPLES
        for kind in (JSON, MSGPACK)
        for body in (
            written(EXAMPLES[path], kind),
            b'{"items": [' + b"[]," * 30_000 + b"[]]}",
            b"\x81\xa5items\xdc\xff\xff" + b"\x90" * 65_535,
            b"[" * 40_000,
        )
    ]

    def memory() -> int:
        for body in bodies * 8:
            ask(*body)
        gc.collect()
        return psutil.Process().memory_info().rss

    memory()
    before = memory()
    assert memory() - before < 8 * 2**20
