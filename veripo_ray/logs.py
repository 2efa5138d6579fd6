"""The structured log: a line of JSON an event, with where the run stood then on every line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pythonjsonlogger.json import JsonFormatter

LOG = "log.jsonl"
ROOTS = ("veripo_ray", "actors", "cluster")  # whose events these are

Where = Callable[[], Mapping[str, Any]]


def to_folder(folder: Path, where: Where) -> Callable[[], None]:
    """Append this process' events to the run's log.jsonl, each with what `where` gives then; call
    the result to end it."""
    return attach(logging.FileHandler(folder / LOG, encoding="utf-8"), where)


def attach(handler: logging.Handler, where: Where) -> Callable[[], None]:
    """Have `handler` write JSON lines of this process' events; call the result to end it."""
    renamed = {"levelname": "level", "name": "logger"}
    layout = ["levelname", "name", "message"]
    handler.setFormatter(JsonFormatter(layout, rename_fields=renamed, timestamp="time"))
    handler.addFilter(_placed(where))
    loggers = [logging.getLogger(name) for name in ROOTS]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)

    def detach() -> None:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()

    return detach


def _placed(where: Where) -> Callable[[logging.LogRecord], bool]:
    """A filter that lets everything pass, and writes on it where it comes from."""

    def place(record: logging.LogRecord) -> bool:
        record.__dict__.update(where())
        return True

    return place
