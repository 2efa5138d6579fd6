"""The `vllm` judge's model as a Ray Serve deployment: prompts in, P(yes) each out.

`bind` gives the node for another application's `bind`; `ask` puts questions to it through the
handle that this application is given. Cases of all requests meet in the engine's batches. (Serve's
batching does not work in its local testing mode.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.env import REPLICA_ENV
from veripo_ray import config
from veripo_ray.verifier.judges import Answered, Ask
from veripo_ray.verifier.judges.vllm_engine import Encoded, YesNoEngine

Answers = list[Answered | str]
# Calls that gather in a replica while it computes a batch; calls of one caller that are on their
# way to a replica or wait for one: more are refused. Once calls have to wait, Serve looks for room
# at ever longer intervals and a sixth of the throughput is left, so a replica takes many.
_MAX_ONGOING, _MAX_QUEUED = 256, 256
_WORTH_A_STEP = 8  # cases: a step of fewer takes as long


def bind(cfg: config.VllmJudge) -> Application:
    """The deployment of this model, to be passed to the `bind` of whoever asks it."""
    return _deployment.options(
        num_replicas=cfg.replicas,
        ray_actor_options={
            "num_cpus": cfg.cpus,
            "num_gpus": cfg.gpus,
            "runtime_env": {"env_vars": REPLICA_ENV},
        },
        max_ongoing_requests=max(cfg.max_batch, _MAX_ONGOING),
        max_queued_requests=_MAX_QUEUED,
        graceful_shutdown_timeout_s=5,
    ).bind(cfg.model_dump())


def ask(handle: DeploymentHandle, cfg: config.VllmJudge) -> Ask:
    """How the judge reaches the deployment. A replica that died, is overloaded or is slower than
    `cfg.timeout_s` is an error of the cases that it was asked; cancelled, these are withdrawn."""
    return _Served(handle, cfg)


class _Served:
    def __init__(self, handle: DeploymentHandle, cfg: config.VllmJudge) -> None:
        self._handle, self._cfg = handle, cfg

    async def __call__(self, prompts: Sequence[str]) -> Answers:
        size = self._size(len(prompts))
        shares = [list(prompts[start : start + size]) for start in range(0, len(prompts), size)]
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._share(share)) for share in shares]
        return [answer for task in asked for answer in task.result()]

    def _size(self, count: int) -> int:
        """Prompts of one call: as many as every replica gets when all share them, but no fewer
        than are worth a step of an engine, and no more than go into one."""
        equal = -(-count // self._cfg.replicas)
        return min(max(equal, _WORTH_A_STEP), self._cfg.max_batch)

    async def _share(self, prompts: list[str]) -> Answers:
        response = self._handle.score.remote(prompts)
        try:
            async with asyncio.timeout(self._cfg.timeout_s):
                return await response
        except TimeoutError:
            response.cancel()
            problem = f"no answer within {self._cfg.timeout_s:g} s (judges.vllm.timeout_s)"
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError:
            problem = "too many cases wait for it; raise judges.vllm.replicas"
        except (RayError, RayServeException) as error:
            problem = f"it failed: {_last_line(error)}"
        return [f"the judge's model {self._cfg.model}: {problem}"] * len(prompts)


class _Replica:
    """One replica: one engine, in a thread of its own so that health checks are answered, and the
    tokens of the next prompts in another one."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        settings = config.VllmJudge.model_validate(cfg)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")
        self._tokens = ThreadPoolExecutor(1, thread_name_prefix="tokens")
        self._engine = self._thread.submit(YesNoEngine, settings).result()
        self._broken = ""
        self._together.set_max_batch_size(settings.max_batch)
        self._together.set_batch_wait_timeout_s(settings.batch_wait_s)

    async def score(self, prompts: list[str]) -> Answers:
        """An answer a prompt, or its own error, in order. At most `max_batch` of them."""
        loop = asyncio.get_running_loop()
        encoded = await loop.run_in_executor(self._tokens, self._engine.encode, prompts)
        return await self._together(encoded)

    @serve.batch(batch_size_fn=lambda calls: sum(map(len, calls)))
    async def _together(self, calls: list[list[Encoded]]) -> list[Answers]:
        return await self._answered(calls)

    async def _answered(self, calls: list[list[Encoded]]) -> list[Answers]:
        self.check_health()
        encoded = [one for call in calls for one in call]
        loop = asyncio.get_running_loop()
        try:
            answers = iter(await loop.run_in_executor(self._thread, self._engine.answer, encoded))
        except Exception as error:
            self._broken = f"{type(error).__name__}: {error}"
            raise
        return [[next(answers) for _ in call] for call in calls]

    def check_health(self) -> None:
        """Serve replaces a replica whose engine has failed."""
        if self._broken:
            raise RuntimeError(f"the judge's engine failed: {self._broken}")


_deployment = serve.deployment(_Replica, name="Judge")


def _last_line(error: Exception) -> str:
    """The last line of what may be a whole remote traceback."""
    lines = str(error).strip().splitlines()
    return (lines[-1] if lines else type(error).__name__)[:300]
