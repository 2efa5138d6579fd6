"""Asks a language model behind any OpenAI-compatible URL: one chat completion of one token a case.

Every failure is the error of its case: a server that is down, slow or talks garbage, a key that is
refused. Attempts, time and requests at once are bounded, and a server that keeps failing is left
alone for a while (see `breaker`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential_jitter,
)

from veripo_ray import config
from veripo_ray.verifier.judges.ask import Answered
from veripo_ray.verifier.judges.breaker import Breaker
from veripo_ray.verifier.judges.openai_server import Busy, Failed, Server

log = logging.getLogger(__name__)
_backoff = wait_exponential_jitter(multiplier=0.1, max=5.0, jitter=0.5)


@dataclass(frozen=True, slots=True)
class _Session:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    http: httpx.AsyncClient
    slots: asyncio.Semaphore


class OpenAi:
    """An `Ask`. It keeps its connections until `aclose`, or until another event loop uses it.

    `timeout_s` bounds a case with all its attempts, from the moment that it is one of the
    `parallel` cases under way. Raises ConfigError for a URL or a key that cannot be used.
    """

    def __init__(self, cfg: config.OpenAiJudge) -> None:
        self._cfg, self._server = cfg, Server(cfg)
        self._session: _Session | None = None
        self.breaker = Breaker(cfg.breaker_failures, cfg.breaker_pause_s)

    async def __call__(self, prompts: Sequence[str]) -> list[Answered | str]:
        session = self._in_this_loop()
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._in_turn(session, prompt)) for prompt in prompts]
        return [task.result() for task in asked]

    async def aclose(self) -> None:
        """Close the connections; a later call opens new ones."""
        session, self._session = self._session, None
        if session is not None and session.loop is asyncio.get_running_loop():
            await session.http.aclose()

    def _in_this_loop(self) -> _Session:
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.loop is not loop:
            slots = asyncio.Semaphore(self._cfg.parallel)
            self._session = _Session(loop, self._server.connect(), slots)
        return self._session

    async def _in_turn(self, session: _Session, prompt: str) -> Answered | str:
        async with session.slots:
            admitted = self.breaker.admit()
            if admitted is None:
                return self._error("it failed too often and is left alone for a while")
            try:
                answer = await self._answer(session.http, prompt)
            except Failed as error:
                (self.breaker.failed if error.server else self.breaker.succeeded)(admitted)
                return self._error(str(error))
            except Exception as error:  # a library's surprise must not spoil the other cases
                log.exception("a request to %s failed", self._server.address)
                self.breaker.failed(admitted)
                return self._error(type(error).__name__)
            except BaseException:
                self.breaker.given_up(admitted)
                raise
            self.breaker.succeeded(admitted)
            return self._error(answer) if isinstance(answer, str) else answer

    async def _answer(self, http: httpx.AsyncClient, prompt: str) -> Answered | str:
        """The server's answer, after as many attempts as there is time for."""
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(Busy),
            stop=stop_after_attempt(self._cfg.attempts) | stop_before_delay(self._cfg.timeout_s),
            wait=_wait,
            reraise=True,
        )
        try:
            async with asyncio.timeout(self._cfg.timeout_s):
                return await attempts(self._server.complete, http, prompt)
        except TimeoutError as error:
            number = attempts.statistics["attempt_number"]
            limit = f"{self._cfg.timeout_s:g} s (judges.openai.timeout_s)"
            raise Failed(f"no answer within {limit}, in attempt {number}") from error
        except Busy as error:
            number = attempts.statistics["attempt_number"]
            raise Failed(f"{error}; given up after {number} attempt(s)") from error

    def _error(self, problem: str) -> str:
        return f"the judge at {self._server.address}: {problem}"


def _wait(state: RetryCallState) -> float:
    """Seconds to the next attempt: exponential with jitter, at least what the server asks for."""
    error = state.outcome.exception() if state.outcome else None
    return max(_backoff(state), error.after if isinstance(error, Busy) else 0.0)
