"""Waiting for several actors at once, with a limit, and errors that say who it was and where."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ray._private.state import actors as state_of_actors
from ray.exceptions import RayActorError, RayError, RayTaskError

from veripo_ray.errors import LostError, ResourceError, VeripoError

Actors = Mapping[str, Any]  # handles by name: "learner rank 0", "rollout worker 1"
Failures = dict[str, VeripoError]  # by the same names


class MissingError(ResourceError):
    """An actor did not answer in time, and may be busy for ever."""


class Waiting:
    """Waits for an answer of each of some actors.

    actors: all that may be waited for; limit_s: the longest wait; setting: the name of that limit.
    """

    def __init__(self, actors: Actors, limit_s: float, setting: str) -> None:
        self._actors, self._limit_s, self._setting = dict(actors), limit_s, setting

    async def all(self, calls: Mapping[str, Any], doing: str) -> dict[str, Any]:
        """The answers by name. Raises one error that names all who gave none."""
        answers, failures = await self.each(calls, doing)
        if failures:
            raise together(failures)
        return answers

    async def the(self, name: str, call: Any, doing: str) -> Any:
        """The answer of one."""
        return (await self.all({name: call}, doing))[name]

    async def each(self, calls: Mapping[str, Any], doing: str) -> tuple[dict[str, Any], Failures]:
        """The answers by name, and the errors of those who gave none."""
        outcomes = await asyncio.gather(
            *(self._outcome(n, call, doing) for n, call in calls.items())
        )
        by_name = dict(zip(calls, outcomes, strict=True))
        failures = {n: e for n, e in by_name.items() if isinstance(e, VeripoError)}
        return {n: answer for n, answer in by_name.items() if n not in failures}, failures

    async def _outcome(self, name: str, call: Any, doing: str) -> Any:
        """The answer, or the error that tells why there is none."""
        try:
            async with asyncio.timeout(self._limit_s):
                return await call
        except TimeoutError:
            return MissingError(
                f"{self._who(name)} did not answer within {self._setting} = {self._limit_s:g}, "
                f"{doing}",
                fix=f"see its log for what hangs; raise {self._setting} if the work is that long. "
                "--resume goes on from the last checkpoint",
            )
        except RayActorError as error:
            return LostError(
                f"{self._who(name)} died, {doing}: {_last_line(error)}",
                fix="its log tells why (often too little memory); then go on with --resume",
            )
        except RayError as error:
            return self._named(name, error)

    def _named(self, name: str, error: RayError) -> VeripoError:
        cause = error.cause if isinstance(error, RayTaskError) and error.cause else error
        if isinstance(cause, VeripoError):
            return type(cause)(f"{self._who(name)}: {cause.problem}", fix=cause.fix)
        told = f"{type(cause).__name__}: {_last_line(cause)}"
        return VeripoError(f"{self._who(name)}: {told}", fix="see its log")

    def _who(self, name: str) -> str:
        """An actor's name, and the node that it is on."""
        state: Any = state_of_actors(self._actors[name]._actor_id.hex())
        address = state.get("Address", {}).get("IPAddress")
        return f"{name} (node {address})" if address else name


def is_gone(failure: VeripoError) -> bool:
    """Whether it is of no use to ask that actor again."""
    return isinstance(failure, LostError | MissingError)


def together(failures: Failures) -> VeripoError:
    """One error of several, of the gravest kind that there is among them."""
    grave = (MissingError, LostError, VeripoError)
    first = next(f for kind in grave for f in failures.values() if isinstance(f, kind))
    problems = "\n  ".join(failure.problem for failure in failures.values())
    return type(first)(problems, fix=first.fix)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else repr(error)
