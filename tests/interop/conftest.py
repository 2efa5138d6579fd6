"""The oracles are other trainers' own code; they are installed by the `interop` extra."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from veripo_ray.compat import stand_in_flash_attn


@pytest.fixture(scope="session")
def openrlhf_losses():
    """OpenRLHF's `openrlhf.models.loss`."""
    stand_in_flash_attn()
    return pytest.importorskip("openrlhf.models.loss")


@pytest.fixture(scope="session")
def serve_verifier() -> Iterator[Callable[..., str]]:
    """Starts the endpoint behind a real HTTP server in this process, without Ray:
    `serve_verifier(key=value)` returns its URL."""
    import uvicorn

    from deployments.endpoint import Endpoint
    from deployments.settings import read
    from veripo_ray.verifier import judges

    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(**settings: object) -> str:
        args = read({key.replace("__", "."): value for key, value in settings.items()})
        api = Endpoint(args, lambda name: judges.build(name, args.judges)).api()
        server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        return _address(server)

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)


def _address(server) -> str:
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline, "the endpoint did not start"
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    return f"http://{host}:{port}"
