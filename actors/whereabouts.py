"""Where the run stands: the coordinator tells it, and every actor of the run can look it up for
its own metrics and log lines. Ray's key-value store keeps it, under the job that both belong to."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from veripo_ray import logs

_SPACE = b"veripo"


@dataclass(frozen=True, slots=True)
class Where:
    """Before the coordinator has told anything: of no run."""

    run: str = ""
    iteration: int = 0
    phase: str = ""
    version: int = 0


def tell(where: Where) -> None:
    """For all actors of this job. Without Ray there is nobody to tell."""
    if ray.is_initialized():
        _internal_kv_put(_key(), json.dumps(asdict(where)).encode(), namespace=_SPACE)


def look() -> Where:
    """What was told last. A call to Ray's head: once for a piece of work, not for every group."""
    told = _internal_kv_get(_key(), namespace=_SPACE) if ray.is_initialized() else None
    return Where(**json.loads(told)) if told else Where()


def myself(role: str) -> str:
    """The name of this actor in metrics and logs: its role and the beginning of Ray's id of it."""
    actor = _actor_id()
    return f"{role} {actor[:8]}" if actor else role


class Log:
    """Makes the process of an actor write JSON lines, into the file that Ray keeps of it."""

    def __init__(self, worker: str) -> None:
        self._worker, self.where = worker, Where()
        if _actor_id():
            logs.attach(logging.StreamHandler(), self._fields)

    def _fields(self) -> Mapping[str, Any]:
        return {"worker": self._worker, **asdict(self.where)}


def _actor_id() -> str | None:
    return ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None


def _key() -> bytes:
    return f"where/{ray.get_runtime_context().get_job_id()}".encode()
