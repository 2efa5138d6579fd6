"""The verifier's HTTP interface as a FastAPI application: no Ray in it.

`POST /v1/verify` takes and gives JSON or msgpack (see `veripo_ray.verifier.wire`), `GET /healthz`
says that it is alive. What a stranger can make grow is bounded: the body while it streams in, the
items of a request, its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response

from deployments.settings import Args
from veripo_ray.errors import DataError
from veripo_ray.records import Verdict
from veripo_ray.verifier import tokens, wire
from veripo_ray.verifier.judges import Judge, Rules
from veripo_ray.verifier.verify import Item, averify, undecided

T = TypeVar("T")
_SLICE = 64  # items between two looks at the deadline and at other requests
_THREADS = 2
_JUDGES: dict[str, type[Judge]] = {"rules": Rules}


class Refusal(Exception):
    """An answer that is not 200, with what to do about it."""

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status, self.problem = status, problem

    def response(self) -> Response:
        return Response(self.problem + "\n", self.status, media_type="text/plain")


class Endpoint:
    """Work runs in threads, a slice of a request at a time, so that the process goes on answering
    health checks and other requests meanwhile, and stops when nobody waits any more."""

    def __init__(self, args: Args) -> None:
        self._args = args
        self._judge = _JUDGES[args.judge]()
        self._count_tokens = tokens.counter(args.tokenizer)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="verify")

    def api(self) -> FastAPI:
        api = FastAPI(title="VeriPO-Ray verifier")
        api.get("/healthz")(self.healthz)
        api.post("/v1/verify", response_class=Response)(self.verify)
        return api

    async def healthz(self) -> dict[str, str]:
        return {"status": "ok", "judge": self._args.judge}

    async def verify(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(self._args.timeout_s):
                return await self._answer(request)
        except Refusal as refusal:
            return refusal.response()
        except TimeoutError:
            return Refusal(504, f"no verdict within {self._args.timeout_s:g} s").response()

    async def _answer(self, request: Request) -> Response:
        media_type = _media_type_of(request)
        body = await _read_body(request, int(self._args.max_body_mb * 2**20))
        items = await self._read(body, media_type)
        verdicts: list[Verdict] = []
        for start in range(0, len(items), _SLICE):
            verdicts += await self._judged(items[start : start + _SLICE])
        reply_type = _reply_type(request, media_type)
        content = await self._in_thread(wire.write_verdicts, verdicts, reply_type)
        return Response(content, media_type=reply_type)

    async def _read(self, body: bytes, media_type: str) -> list[Item | str]:
        limit = self._args.max_items
        try:
            return await self._in_thread(wire.read_items, body, media_type, limit)
        except wire.TooLargeError as error:
            raise Refusal(413, str(error)) from error
        except DataError as error:
            raise Refusal(400, str(error)) from error

    async def _judged(self, items: list[Item | str]) -> list[Verdict]:
        """Verdicts of the valid items in one batch; the others keep their own error."""
        valid = [item for item in items if isinstance(item, Item)]
        judged = iter(await averify(valid, self._judge, self._args.checks, self._count_tokens))
        return [next(judged) if isinstance(item, Item) else undecided(item) for item in items]

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)


async def _read_body(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is known to be over `limit` bytes."""
    refusal = Refusal(413, f"the body is over {limit} bytes\n  fix: send fewer items in a request")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise refusal
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise refusal
    return bytes(body)


def _media_type_of(request: Request) -> str:
    given = request.headers.get("content-type", wire.JSON).partition(";")[0].strip().lower()
    if given in (wire.MSGPACK, "application/x-msgpack"):
        return wire.MSGPACK
    if given == wire.JSON:
        return wire.JSON
    raise Refusal(415, f"cannot read {given!r}\n  fix: send {wire.JSON} or {wire.MSGPACK}")


def _reply_type(request: Request, request_type: str) -> str:
    """What `accept` names, JSON before msgpack; otherwise the request's own type."""
    accepted = request.headers.get("accept", "")
    return next((kind for kind in (wire.JSON, wire.MSGPACK) if kind in accepted), request_type)
