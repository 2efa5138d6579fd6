"""A client of the verifier's endpoint: bounded retries, a deadline, errors with the address."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from veripo_ray.errors import DataError, ResourceError, VeripoError
from veripo_ray.records import Verdict
from veripo_ray.verifier import wire
from veripo_ray.verifier.verify import Item

_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_FORMAT = {"content-type": wire.MSGPACK, "accept": wire.MSGPACK}


class _TryAgain(Exception):
    """What may pass by itself: nobody listens yet, the verifier is busy or restarting."""

    def __init__(self, problem: str, after: float = 0.0) -> None:
        super().__init__(problem)
        self.after = after


class VerifierClient:
    """Speaks msgpack. `timeout` seconds bound a request with all its retries; long lists are sent
    in requests of `batch` items. `transport` replaces the network in tests.

    Raises ResourceError when the verifier cannot be reached in time, DataError when it refuses the
    request or its reply cannot be read. An item's own error comes back inside its verdict.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 60.0,
        *,
        batch: int = 256,
        transport: httpx.BaseTransport | httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, self._timeout, self._batch = url.rstrip("/"), timeout, batch
        # Loading certificates takes longer than a request; plain HTTP needs none.
        tls = self.url.startswith("https:")
        self._network: dict[str, Any] = {"transport": transport, "verify": tls}

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item, in order."""
        verdicts: list[Verdict] = []
        with httpx.Client(**self._network) as http:
            for few in _batches(items, self._batch):
                retrying = Retrying(**self._policy())
                verdicts += retrying(self._post, http, few, time.monotonic() + self._timeout)
        return verdicts

    async def averify(self, items: Sequence[Item]) -> list[Verdict]:
        """As `verify`, without blocking the event loop."""
        verdicts: list[Verdict] = []
        async with httpx.AsyncClient(**self._network) as http:
            for few in _batches(items, self._batch):
                retrying = AsyncRetrying(**self._policy())
                verdicts += await retrying(self._apost, http, few, time.monotonic() + self._timeout)
        return verdicts

    async def ready(self) -> None:
        """Return once the verifier answers its health check; ResourceError after `timeout`."""
        async with httpx.AsyncClient(**self._network) as http:
            await AsyncRetrying(**self._policy())(self._healthy, http)

    async def _healthy(self, http: httpx.AsyncClient) -> None:
        try:
            self._checked(await http.get(f"{self.url}/healthz", timeout=min(5.0, self._timeout)))
        except httpx.TransportError as error:
            raise _TryAgain(_named(error)) from error

    def _post(self, http: httpx.Client, items: list[Item], deadline: float) -> list[Verdict]:
        try:
            reply = http.post(**self._request(items, deadline))
        except httpx.TransportError as error:
            raise _TryAgain(_named(error)) from error
        return self._verdicts(reply, len(items))

    async def _apost(
        self, http: httpx.AsyncClient, items: list[Item], deadline: float
    ) -> list[Verdict]:
        try:
            reply = await http.post(**self._request(items, deadline))
        except httpx.TransportError as error:
            raise _TryAgain(_named(error)) from error
        return self._verdicts(reply, len(items))

    def _request(self, items: list[Item], deadline: float) -> dict[str, Any]:
        return {
            "url": f"{self.url}/v1/verify",
            "content": wire.write_items(items),
            "headers": _FORMAT,
            "timeout": max(0.1, deadline - time.monotonic()),
        }

    def _verdicts(self, reply: httpx.Response, expected: int) -> list[Verdict]:
        try:
            return wire.read_verdicts(self._checked(reply).content, expected)
        except DataError as error:
            fix = error.fix or f"check that a verifier of this version listens at {self.url}"
            raise DataError(f"{self.url}: {error.problem}", fix=fix) from error

    def _checked(self, reply: httpx.Response) -> httpx.Response:
        if reply.status_code in _BUSY:
            after = reply.headers.get("retry-after", "")
            seconds = float(after) if after.isdigit() else 0.0
            raise _TryAgain(f"it answered {reply.status_code}: {reply.text[:200]}", seconds)
        if not reply.is_success:
            raise DataError(
                f"it answered {reply.status_code}: {reply.text[:300]}",
                fix="correct the items, or send fewer at once",
            )
        return reply

    def _policy(self) -> dict[str, Any]:
        return {
            "retry": retry_if_exception_type(_TryAgain),
            "stop": stop_after_delay(self._timeout),
            "wait": self._wait,
            "retry_error_callback": self._give_up,
        }

    def _wait(self, state: RetryCallState) -> float:
        """Exponential with jitter, at least what the server asked for, never past the deadline."""
        wanted = wait_exponential_jitter(multiplier=0.1, max=5.0, jitter=0.5)(state)
        if isinstance(error := _error_of(state), _TryAgain):
            wanted = max(wanted, error.after)
        return max(0.0, min(wanted, self._timeout - (state.seconds_since_start or 0.0)))

    def _give_up(self, state: RetryCallState) -> None:
        raise self._unreachable(_error_of(state), state.attempt_number)

    def _unreachable(self, error: BaseException | None, attempts: int) -> VeripoError:
        return ResourceError(
            f"the verifier at {self.url} gave no answer within {self._timeout:g} s "
            f"({attempts} attempts): {error}",
            fix="check that it runs (GET /healthz), raise verifier.timeout_s or verifier.replicas",
        )


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while few := list(islice(iterator, size)):
        yield few
