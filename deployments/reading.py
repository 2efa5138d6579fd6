"""Requests as they come in: their body within bounds, their format and the one they want back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import ValidationError

from deployments.refusal import Refusal
from veripo_ray.records import Record
from veripo_ray.verifier import bodies
from veripo_ray.verifier.bodies import JSON, MSGPACK, NDJSON

T = TypeVar("T")
R = TypeVar("R", bound=Record)


_SMALL = 2**15  # bytes that are read sooner than a thread begins to


class Reader:
    """Reads and writes in threads of `executor`, since a large message takes its time."""

    def __init__(self, executor: Executor, max_body_mb: float) -> None:
        self._executor, self._max_bytes = executor, int(max_body_mb * 2**20)

    async def read(self, request: Request, parse: Callable[[bytes, str], T]) -> T:
        """What `parse` makes of the body and its media type."""
        media_type = media_type_of(request)
        body = await read_body(request, self._max_bytes)
        if len(body) <= _SMALL:
            return parse(body, media_type)
        return await self._in_thread(parse, body, media_type)

    async def reply(self, request: Request, message: Record) -> Response:
        media_type = reply_type(request)
        content = await self._in_thread(bodies.write, message, media_type)
        return Response(content, media_type=media_type)

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)


def as_model(kind: type[R], max_values: int) -> Callable[[bytes, str], R]:
    """A parser of whole requests. Raises Refusal 400 naming the first field at fault."""

    def parse(body: bytes, media_type: str) -> R:
        value = bodies.parse(body, media_type, max_values)
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            problem = f"the request is not valid: {bodies.first_problem(error)}"
            raise Refusal(400, problem, "see /docs for its shape") from None

    return parse


async def read_body(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is known to be over `limit` bytes."""
    refusal = Refusal(413, f"the body is over {limit} bytes", "send less in a request")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise refusal
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise refusal
    return bytes(body)


def media_type_of(request: Request) -> str:
    given = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if given in (MSGPACK, "application/x-msgpack"):
        return MSGPACK
    if given == JSON:
        return JSON
    raise Refusal(415, f"a body of type {given[:80]!r} cannot be read", f"send {JSON} or {MSGPACK}")


def reply_type(request: Request) -> str:
    """What `accept` names, JSON before msgpack; otherwise the request's own type."""
    accepted = request.headers.get("accept", "")
    wanted = (kind for kind in (JSON, MSGPACK) if kind in accepted)
    return next(wanted, None) or media_type_of(request)


def wants_stream(request: Request) -> bool:
    return NDJSON in request.headers.get("accept", "")
