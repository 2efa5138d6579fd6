"""The verifier's HTTP interface, without the deployment around it: its parts, put together.

What a stranger can make grow is bounded: the body while it streams in (`reading`), what is built
of it (`veripo_ray.verifier.bodies`), the work at once (`admission`, `judging`) and its time
(`routes`).
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import ray
from fastapi import APIRouter, Depends, FastAPI

import veripo_ray
from deployments import docs, refusal
from deployments.admission import Admission
from deployments.auth import Bearer
from deployments.judging import BuildJudge, Judging
from deployments.logs import Observed
from deployments.metrics import Metrics
from deployments.reading import Reader
from deployments.routes import Routes
from deployments.settings import Args
from veripo_ray.verifier.shapes import Info

_THREADS = 2  # more would only take the interpreter from the event loop
_LIMITS = (
    "timeout_s",
    "max_body_mb",
    "max_items",
    "max_requests",
    "max_pending_items",
    "max_wait_s",
)


class Endpoint:
    """One replica's. `build` makes a judge by its name; `token` is what requests must bear, None
    for nothing; `proxied`: whether a proxy in front puts the request's id on the reply."""

    def __init__(
        self, args: Args, build: BuildJudge, token: str | None = None, *, proxied: bool = False
    ) -> None:
        self._args, self._token, self._proxied = args, token, proxied
        self._metrics = Metrics()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="verify")
        self._judging = Judging(args, build, self._metrics)
        self._admission = Admission(args, self._metrics)
        self._routes = Routes(args, Reader(self._threads, args.max_body_mb), self._judging)

    def api(self) -> FastAPI:
        api = FastAPI(
            title="VeriPO-Ray verifier",
            version=veripo_ray.__version__,
            description=docs.DESCRIPTION,
            lifespan=self._life,
        )
        api.get("/healthz")(self.healthz)
        guarded = APIRouter(dependencies=[Depends(Bearer(self._token))])
        guarded.get("/v1/info", response_model=Info)(self.info)
        admitted = APIRouter(dependencies=[Depends(self._admission)])
        self._routes.add_to(admitted)
        guarded.include_router(admitted)
        api.include_router(guarded)
        refusal.install(api)
        docs.install(api)
        api.add_middleware(Observed, metrics=self._metrics, echo=not self._proxied)
        return api

    @asynccontextmanager
    async def _life(self, _: FastAPI) -> AsyncIterator[None]:
        # The library's own `asyncio.to_thread` shares these few threads.
        asyncio.get_running_loop().set_default_executor(self._threads)
        yield
        await self._judging.close()

    async def healthz(self) -> dict[str, str]:
        """Alive. Needs no token, and asks no judge."""
        return {"status": "ok", "judge": self._args.judge}

    async def info(self) -> Info:
        """Versions, judges, thresholds and limits."""
        args = self._args.model_dump(mode="json")
        return Info(
            versions={
                "veripo-ray": veripo_ray.__version__,
                "ray": ray.__version__,
                "python": platform.python_version(),
            },
            breakers={name: str(b.state) for name, b in self._judging.breakers.items()},
            limits={name: args[name] for name in _LIMITS},
            at_work=self._admission.at_work,
            **{name: args[name] for name in ("judge", "heldout", "checks", "judges")},
            **{name: args[name] for name in ("pairs", "rewards")},
        )
