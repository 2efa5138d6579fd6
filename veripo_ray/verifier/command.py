"""`veripo verify FILE.jsonl`: a verdict a line, from a verifier's address or from this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from veripo_ray.errors import ConfigError, DataError
from veripo_ray.records import Verdict
from veripo_ray.verifier import bodies
from veripo_ray.verifier.client import VerifierClient
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.table import Table
from veripo_ray.verifier.verify import Item, undecided, verify

_AT_ONCE = 256


def verify_file(
    file: Path, url: str | None, out: TextIO | None = None, *, token_env: str | None = None
) -> int:
    """Write one verdict a line (JSON), in the order of the lines; return how many carry an error.

    A line that is no item gets a verdict with that error. token_env: the environment variable with
    the verifier's token, where it is not the client's own. Raises DataError for a missing file.
    """
    errors = 0
    for _, verdict in _verdicts(file, url, token_env):
        errors += verdict.error is not None
        (out or sys.stdout).write(verdict.model_dump_json() + "\n")
    return errors


def show_file(
    file: Path, url: str | None, out: TextIO | None = None, *, token_env: str | None = None
) -> int:
    """As `verify_file`, but as a table for people: each check, and what is wrong in words."""
    table, errors = Table(), 0
    for item, verdict in _verdicts(file, url, token_env):
        errors += verdict.error is not None
        table.add(item.question_id if item else "", verdict)
    table.print(out or sys.stdout)
    return errors


def _verdicts(
    file: Path, url: str | None, token_env: str | None
) -> Iterator[tuple[Item | None, Verdict]]:
    """Every line's item, where it is one, and verdict."""
    if not file.is_file():
        raise DataError(f"there is no file {file}", fix="give a JSONL file of items")
    client = VerifierClient(url, token=_token(token_env)) if url else None
    with file.open(encoding="utf-8", errors="replace") as lines, client or nullcontext():
        while few := list(islice(lines, _AT_ONCE)):
            read = [_item(line) for line in few if line.strip()]
            items = [item for item in read if isinstance(item, Item)]
            judged = iter(client.verify(items) if client else verify(items, Rules()))
            for item in read:
                yield (item, next(judged)) if isinstance(item, Item) else (None, undecided(item))


def _item(line: str) -> Item | str:
    try:
        return Item.model_validate_json(line)
    except ValidationError as error:
        return f"the line is no item: {bodies.first_problem(error)}"


def _token(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (token := os.environ.get(variable)):
        raise ConfigError(
            f"--token-env {variable}: that environment variable is not set",
            fix=f"export {variable}=... with the verifier's token",
        )
    return token
