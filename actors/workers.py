"""The rollout workers of a run: who is there, who is coming, and who takes the place of a lost one.

A new worker first starts, then takes the weights of the present version; only then is it *there*,
and questions are dealt to nobody else. A lost one does not come back: another is started.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from ray.exceptions import RayError

from actors.calls import result_of
from veripo_ray import config
from veripo_ray.errors import (
    EngineError,
    LostError,
    LostObjectError,
    ResourceError,
    VeripoError,
)

T = TypeVar("T")

LOOK_S = 5.0  # between two looks at whether the cluster has room for more
RETRY_S = 30.0  # after one that could not join
BROKEN_ENGINES = 1  # more, and it is not the worker's fault: the run ends with vLLM's reason
log = logging.getLogger(__name__)


class Host(Protocol):
    """Where workers are started, and whose weights they serve."""

    async def start_worker(self, number: int, limit_s: float) -> Any:
        """The handle of a new one, as soon as the cluster has room for it; ResourceError when it
        has found none in time. Its autoscaler sees what is waited for."""

    def end_worker(self, number: int, worker: Any) -> None:
        """End it (None: it did not start), and give back its place."""

    @property
    def replaces_workers(self) -> bool:
        """Whether one can be started beside what is at work."""

    @property
    def can_catch_up(self) -> bool:
        """Whether the weights of the present version can be had now."""

    async def catch_up(self, worker: Any) -> None:
        """Wait until they can be had, and return in the moment in which the worker has them."""


class Workers:
    """Keeps `cfg.workers` rollout workers there, more (up to `cfg.max_workers`) where the cluster
    has or finds room, and tells who wants to sample when they are fewer than `cfg.min_workers`.

    there: by number, the lowest free one for each that joins; joins: how often one has joined.
    """

    def __init__(
        self, cfg: config.Rollout, host: Host, *, tell: Callable[[str], None] = log.warning
    ) -> None:
        """tell: hears the news."""
        self._cfg, self._host, self._tell = cfg, host, tell
        self.there: dict[int, Any] = {}
        self.joins = 0
        self._coming: dict[int, asyncio.Task[None]] = {}
        self._joined = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._broken, self._last_failure, self._retry_at = 0, "", 0.0

    @property
    def several(self) -> bool:
        """Whether there may be more than one at a time."""
        return self._cfg.most_workers > 1

    def by_name(self) -> dict[str, Any]:
        return {f"rollout worker {number}": worker for number, worker in self.there.items()}

    def begin(self, first: Sequence[Any]) -> None:
        """These start with the present weights."""
        self.there = dict(enumerate(first))

    def keep(self) -> None:
        """From now on replace those who are lost, and use room for more."""
        self._keeper = asyncio.create_task(self._keep())

    async def enough(self) -> None:
        """Return when `min_workers` are there; ResourceError when they are not in time, LostError
        when they cannot come. Who samples while the learner steps waits for nobody, since the next
        weights wait for who samples."""
        deadline = time.monotonic() + self._cfg.join_timeout_s
        while len(self.there) < self._cfg.min_workers:
            if not self._host.replaces_workers:
                raise self._irreplaceable()
            if not self._host.can_catch_up:
                self._require_one()
                return
            if time.monotonic() > deadline:
                raise self._too_few()
            self._joined.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._joined.wait()

    def _require_one(self) -> None:
        if not self.there:
            raise LostError(
                "the last rollout worker was lost while the learner stepped: there is nobody left "
                f"to sample with weights that it had. {self._last_failure}".rstrip(),
                fix="go on with --resume; see its log for why it was lost",
            )

    def _irreplaceable(self) -> LostError:
        return LostError(
            f"rollout workers: {len(self.there)} left, rollout.min_workers = "
            f"{self._cfg.min_workers}; with placement.layout = colocated none is replaced alone",
            fix="see its log for why it was lost; then go on with --resume",
        )

    def _too_few(self) -> ResourceError:
        return ResourceError(
            f"rollout workers: {len(self.there)} left, rollout.min_workers = "
            f"{self._cfg.min_workers}, and no other joined within rollout.join_timeout_s = "
            f"{self._cfg.join_timeout_s:g}. {self._last_failure}".rstrip(),
            fix="add nodes, or lower rollout.min_workers; then go on with --resume",
        )

    async def all(self, work: Callable[[int, Any], Awaitable[T]]) -> list[T]:
        """What each of those who are there makes of it, all at the same time; who is lost over it
        gives nothing. Any other error raises."""

        async def one(number: int, worker: Any) -> list[T]:
            try:
                return [await work(number, worker)]
            except VeripoError as error:
                if not is_lost(error):
                    raise
                self.lost(number, worker, error)
                return []

        made = await asyncio.gather(*(one(*entry) for entry in self.there.items()))
        return [result for results in made for result in results]

    async def call_the_roll(self) -> bool:
        """Whether any of those who were there is lost, as it turns out now."""
        before = len(self.there)
        limit_s = self._cfg.join_timeout_s
        await self.all(lambda _, worker: result_of(worker.ping.remote(), limit_s, "the roll call"))
        return len(self.there) < before

    def lost(self, number: int, worker: Any, error: Exception) -> None:
        """The worker of that number is of no more use, which its error told; another takes its
        place. Raises the error when vLLM's engine has failed before."""
        if self.there.get(number) is not worker:
            return  # known already
        if isinstance(error, EngineError):
            self._broken += 1
            if self._broken > BROKEN_ENGINES:
                raise error
        del self.there[number]
        self._host.end_worker(number, worker)
        self._tell(f"rollout worker {number} is lost, {len(self.there)} left")
        log.warning("rollout worker %d is lost: %s", number, error)
        self._fill()

    def close(self) -> None:
        """End them all, those that are coming too."""
        for task in filter(None, (self._keeper, *self._coming.values())):
            task.cancel()
        for entry in self.there.items():
            self._host.end_worker(*entry)
        self.there = {}

    async def _keep(self) -> None:
        while True:
            self._fill()
            await asyncio.sleep(LOOK_S)

    def _fill(self) -> None:
        """Ask the cluster for as many as are missing or, when none are, for one more at a time."""
        taken = self.there.keys() | self._coming.keys()
        free = [n for n in range(self._cfg.most_workers) if n not in taken]
        missing = self._cfg.workers - len(taken)
        if not free or self._keeper is None or not self._host.replaces_workers:
            return
        if time.monotonic() < self._retry_at:
            return
        for number in free[: max(missing, int(not self._coming))]:
            self._coming[number] = asyncio.create_task(self._join(number))

    async def _join(self, number: int) -> None:
        worker, limit_s = None, self._cfg.join_timeout_s
        try:
            worker = await self._host.start_worker(number, limit_s)
            await result_of(worker.ping.remote(), limit_s, f"the start of rollout worker {number}")
            await self._host.catch_up(worker)
            self.there[number] = worker
            self.joins += 1
            self._joined.set()
            self._tell(f"rollout worker {number} joined, {len(self.there)} in all")
        except (VeripoError, RayError) as error:
            self._last_failure = f"The last that was started: {error}"
            self._retry_at = time.monotonic() + RETRY_S
            needed = len(self.there) < self._cfg.workers
            level = logging.WARNING if needed else logging.INFO
            log.log(level, "rollout worker %d could not join: %s", number, error)
        finally:
            del self._coming[number]
            if number not in self.there:
                self._host.end_worker(number, worker)


def is_lost(error: Exception) -> bool:
    """Whether a worker's error ended the worker itself, and nothing else."""
    return isinstance(error, LostError | EngineError) and not isinstance(error, LostObjectError)
