"""Waiting for actors: their own errors come out, and no wait is without a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from veripo_ray.errors import ResourceError, VeripoError


async def result_of(reference: Any, limit_s: float, what: str) -> Any:
    """An actor's answer. What it raised comes out, not Ray's wrapping of it; ResourceError when it
    died, or did not answer within `limit_s` seconds."""
    try:
        async with asyncio.timeout(limit_s):
            return await reference
    except TimeoutError:
        raise late(what, limit_s) from None
    except (RayTaskError, RayActorError) as error:
        raise _unwrapped(error) from None


async def results_of(references: Sequence[Any], limit_s: float, what: str) -> list[Any]:
    """The answers of several actors, which work at the same time."""
    waits = (result_of(reference, limit_s, what) for reference in references)
    return list(await asyncio.gather(*waits))


def result_now(reference: Any) -> Any:
    """As `result_of`, outside an event loop, of a call that is done or answers at once."""
    try:
        return ray.get(reference)
    except (RayTaskError, RayActorError) as error:
        raise _unwrapped(error) from None


def late(what: str, limit_s: float) -> ResourceError:
    return ResourceError(
        f"{what} took longer than call_timeout_s = {limit_s:g}",
        fix="see the actors' logs for what hangs; raise it if the work is that long. "
        "--resume goes on from the last checkpoint",
    )


def _unwrapped(error: Exception) -> Exception:
    cause = getattr(error, "cause", None)
    if isinstance(cause, VeripoError):
        return cause
    if isinstance(error, RayActorError):
        return ResourceError(
            f"an actor of the run died: {error}",
            fix="its log tells why (often too little memory); then go on with --resume",
        )
    return error
