"""Waiting for actors: their own errors come out, and no wait is without a limit."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from veripo_ray.errors import LostError, LostObjectError, ResourceError, VeripoError

SEEN_S = 30.0  # after which Ray has noticed that a node has gone


async def result_of(reference: Any, limit_s: float, what: str) -> Any:
    """An actor's answer. What it raised comes out, not Ray's wrapping of it; LostError when it
    died, ResourceError when it did not answer within `limit_s` seconds."""
    try:
        async with asyncio.timeout(limit_s):
            return await reference
    except TimeoutError:
        raise late(what, limit_s) from None
    except RayError as error:
        raise own_error(error) from None


async def results_of(references: Sequence[Any], limit_s: float, what: str) -> list[Any]:
    """The answers of several actors, which work at the same time.

    When one is lost, those who work with it fail too, and may be heard first: it is the loss that
    is raised, if Ray notices one within SEEN_S seconds.
    """
    waits = [asyncio.ensure_future(result_of(each, limit_s, what)) for each in references]
    try:
        return list(await asyncio.gather(*waits))
    except RayError as error:  # not one of ours: whatever a lost fellow makes of a rank's own work
        raise await _loss_among(waits) or error from None
    finally:
        for wait in waits:
            wait.cancel()


async def _loss_among(waits: Sequence[asyncio.Future[Any]]) -> LostError | None:
    """The first loss among these answers, as far as they come in SEEN_S seconds."""
    for answer in asyncio.as_completed(waits, timeout=SEEN_S):
        try:
            await answer
        except LostError as lost:
            return lost
        except TimeoutError:
            return None
        except (VeripoError, RayError):
            continue
    return None


def result_now(reference: Any) -> Any:
    """As `result_of`, outside an event loop, of a call that is done or answers at once."""
    try:
        return ray.get(reference)
    except RayError as error:
        raise own_error(error) from None


def late(what: str, limit_s: float) -> ResourceError:
    return ResourceError(
        f"{what} took longer than call_timeout_s = {limit_s:g}",
        fix="see the actors' logs for what hangs; raise it if the work is that long. "
        "--resume goes on from the last checkpoint",
    )


def own_error(error: RayError) -> Exception:
    """What the actor raised, or what became of it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, VeripoError):
        return cause
    if isinstance(error, RayTaskError):
        lost = isinstance(cause, ObjectLostError)
        return LostObjectError(f"an object was lost: {cause}") if lost else error
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return ResourceError(f"an actor could not start: {error}", fix="see its error above")
    if isinstance(error, RayActorError | ObjectLostError):
        found = re.search(r"class_name: (\S+)", str(error))
        return LostError(
            f"{found[1] if found else 'an actor of the run'} died: {error}",
            fix="its log tells why (often too little memory); then go on with --resume",
        )
    return error
