"""The endpoint in this process, without Ray. The real Serve is in `test_verifier` and beyond."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from deployments import serving
from deployments.endpoint import Endpoint
from deployments.settings import Args
from veripo_ray.verifier import judges
from veripo_ray.verifier.judges import Judge


class Local:
    """An endpoint that is asked over ASGI. `judge` stands in for both judges."""

    def __init__(self, args: Args, judge: Judge | None = None, token: str | None = None) -> None:
        def build(name: str) -> Judge:
            return judge or judges.build(name, args.judges)

        self.endpoint = Endpoint(args, build, token)
        self.api = self.endpoint.api()

    def post(self, path: str, body: bytes | Any, **headers: str) -> httpx.Response:
        return asyncio.run(self.apost(path, body, **headers))

    def get(self, path: str, **headers: str) -> httpx.Response:
        return asyncio.run(self._ask("GET", path, None, headers))

    async def apost(self, path: str, body: bytes | Any, **headers: str) -> httpx.Response:
        return await self._ask("POST", path, body, headers)

    async def _ask(
        self, method: str, path: str, body: bytes | Any, headers: dict[str, str]
    ) -> httpx.Response:
        """A body that is not bytes is sent as JSON."""
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        transport = httpx.ASGITransport(self.api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://verifier") as http:
            return await http.request(
                method, path, headers=named, timeout=60, **(content if method == "POST" else {})
            )


@pytest.fixture
def local() -> Callable[..., Local]:
    """Makes one: `local(Args(...), judge=..., token=...)`."""

    def make(args: Args | None = None, **more: Any) -> Local:
        return Local(args or Args(), **more)

    return make


@pytest.fixture(scope="session")
def serve_address(ray_session: str) -> tuple[str, int]:
    """Where this session's Serve listens: a port of its own, since tests run in several processes
    and two Serves on one port would answer in turns."""
    if not serving._running_address():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        serving._start_serve("127.0.0.1", port)
    found = serving._running_address()
    assert found
    return found
