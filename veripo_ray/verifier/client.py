"""A typed client of the verifier's endpoint, blocking and asynchronous.

    VerifierClient(url).verify(items)                        # connections for this call
    with VerifierClient(url) as verifier: ...                # the same ones for every call
    async with VerifierClient(url) as verifier: ...

Methods with an `a` in front do not block. What both sides share is in `calls`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

import httpx

from veripo_ray.records import Verdict
from veripo_ray.verifier import calls, wire
from veripo_ray.verifier.calls import Call, Stream
from veripo_ray.verifier.retrying import Attempts, TryAgainError
from veripo_ray.verifier.shapes import AnyLabel, Info, QuestionPairs, Rollouts, Score
from veripo_ray.verifier.verify import Item

TOKEN_ENV = "VERIPO_VERIFIER_TOKEN"


class VerifierClient:
    """Speaks msgpack. `timeout` seconds bound a request with all its retries; items are sent in
    requests of `batch`. judge: "heldout" asks the held-out judge. token: None takes what the
    environment's VERIPO_VERIFIER_TOKEN holds. `transport` replaces the network in tests.

    Raises ResourceError when the verifier cannot be reached in time, DataError when it refuses the
    request or its reply cannot be read. An item's own error comes back inside its verdict.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 60.0,
        *,
        batch: int = 256,
        judge: Literal["heldout"] | None = None,
        token: str | None = None,
        transport: httpx.BaseTransport | httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, self._timeout, self._batch, self._judge = url.rstrip("/"), timeout, batch, judge
        bearer = token or os.environ.get(TOKEN_ENV)
        # Loading certificates takes longer than a request; plain HTTP needs none.
        self._network: dict[str, Any] = {
            "transport": transport,
            "verify": self.url.startswith("https:"),
            "headers": {"authorization": f"Bearer {bearer}"} if bearer else {},
        }
        self._http: httpx.Client | None = None
        self._ahttp: httpx.AsyncClient | None = None

    def __enter__(self) -> VerifierClient:
        self._http = httpx.Client(**self._network)
        return self

    def __exit__(self, *_: object) -> None:
        if self._http is not None:
            self._http.close()
        self._http = None

    async def __aenter__(self) -> VerifierClient:
        self._ahttp = httpx.AsyncClient(**self._network)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._ahttp is not None:
            await self._ahttp.aclose()
        self._ahttp = None

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item, in order."""
        batches = calls.verify(items, self._batch, self._judge, wire.read_verdicts)
        with self._connected() as http:
            return [verdict for call in batches for verdict in self._send(http, call)]

    async def averify(self, items: Sequence[Item]) -> list[Verdict]:
        batches = calls.verify(items, self._batch, self._judge, wire.read_verdicts)
        return await self._averified(batches)

    async def averify_plain(self, items: Sequence[Item]) -> list[wire.PlainVerdict]:
        """As `averify`, each as its `model_dump`: see `wire.read_plain_verdicts`."""
        batches = calls.verify(items, self._batch, self._judge, wire.read_plain_verdicts)
        return await self._averified(batches)

    async def _averified(self, batches: Sequence[Call[list[calls.T]]]) -> list[calls.T]:
        async with self._aconnected() as http:
            return [verdict for call in batches for verdict in await self._asend(http, call)]

    def stream(self, items: Sequence[Item]) -> Iterator[tuple[int, Verdict]]:
        """(index, verdict) of each item once, as they finish. A stream that breaks is asked again
        for what is missing."""
        with self._connected() as http:
            for some in calls.streams(items, self._batch, self._judge):
                yield from self._streamed(http, some)

    async def astream(self, items: Sequence[Item]) -> AsyncGenerator[tuple[int, Verdict]]:
        async with self._aconnected() as http:
            for some in calls.streams(items, self._batch, self._judge):
                async for line in self._astreamed(http, some):
                    yield line

    def pairs(self, questions: Sequence[Rollouts], seed: int = 0) -> list[QuestionPairs]:
        """The preference pairs of each question, in order; one request."""
        with self._connected() as http:
            return self._send(http, calls.pairs(questions, seed))

    async def apairs(self, questions: Sequence[Rollouts], seed: int = 0) -> list[QuestionPairs]:
        async with self._aconnected() as http:
            return await self._asend(http, calls.pairs(questions, seed))

    def score(
        self, text_1: AnyLabel | Sequence[AnyLabel], text_2: str | Sequence[str]
    ) -> list[Score]:
        """A score, or an error, of each response `text_2` against its label; one request."""
        with self._connected() as http:
            return self._send(http, calls.score(text_1, text_2))

    async def ascore(
        self, text_1: AnyLabel | Sequence[AnyLabel], text_2: str | Sequence[str]
    ) -> list[Score]:
        async with self._aconnected() as http:
            return await self._asend(http, calls.score(text_1, text_2))

    def info(self) -> Info:
        with self._connected() as http:
            return self._send(http, calls.INFO)

    async def ainfo(self) -> Info:
        async with self._aconnected() as http:
            return await self._asend(http, calls.INFO)

    async def ready(self) -> None:
        """Return once the verifier answers its health check; ResourceError after `timeout`."""
        async with self._aconnected() as http:
            await self._asend(http, calls.HEALTH, at_most=5.0)

    @contextmanager
    def _connected(self) -> Generator[httpx.Client]:
        if self._http is not None:
            yield self._http
        else:
            with httpx.Client(**self._network) as http:
                yield http

    @asynccontextmanager
    async def _aconnected(self) -> AsyncIterator[httpx.AsyncClient]:
        if self._ahttp is not None:
            yield self._ahttp
        else:
            async with httpx.AsyncClient(**self._network) as http:
                yield http

    def _send(self, http: httpx.Client, call: Call[calls.T]) -> calls.T:
        attempts = Attempts(self.url, self._timeout)
        while True:
            try:
                reply = http.request(**call.request(self.url), timeout=attempts.timeout_s)
                return call.result(self.url, reply)
            except httpx.TransportError as broken:
                error = TryAgainError.of(broken)
            except TryAgainError as refused:
                error = refused
            time.sleep(attempts.wait_s(error))

    async def _asend(
        self, http: httpx.AsyncClient, call: Call[calls.T], at_most: float = float("inf")
    ) -> calls.T:
        """at_most: seconds of a single attempt."""
        attempts = Attempts(self.url, self._timeout)
        while True:
            timeout = min(at_most, attempts.timeout_s)
            try:
                reply = await http.request(**call.request(self.url), timeout=timeout)
                return call.result(self.url, reply)
            except httpx.TransportError as broken:
                error = TryAgainError.of(broken)
            except TryAgainError as refused:
                error = refused
            await asyncio.sleep(attempts.wait_s(error))

    def _streamed(self, http: httpx.Client, some: Stream) -> Iterator[tuple[int, Verdict]]:
        attempts = Attempts(self.url, self._timeout)
        while some.unfinished:
            try:
                with http.stream(**some.request(self.url), timeout=attempts.timeout_s) as reply:
                    if not reply.is_success:
                        reply.read()
                    some.begin(self.url, reply)
                    for text in reply.iter_lines():
                        yield some.line(text)
                    some.end()
                return
            except httpx.TransportError as broken:
                error = TryAgainError.of(broken)
            except TryAgainError as refused:
                error = refused
            time.sleep(attempts.wait_s(error))

    async def _astreamed(
        self, http: httpx.AsyncClient, some: Stream
    ) -> AsyncGenerator[tuple[int, Verdict]]:
        attempts = Attempts(self.url, self._timeout)
        while some.unfinished:
            request, timeout = some.request(self.url), attempts.timeout_s
            try:
                async with http.stream(**request, timeout=timeout) as reply:
                    if not reply.is_success:
                        await reply.aread()
                    some.begin(self.url, reply)
                    async for text in reply.aiter_lines():
                        yield some.line(text)
                    some.end()
                return
            except httpx.TransportError as broken:
                error = TryAgainError.of(broken)
            except TryAgainError as refused:
                error = refused
            await asyncio.sleep(attempts.wait_s(error))
