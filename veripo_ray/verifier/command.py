"""`veripo verify FILE.jsonl`: a verdict a line, from a verifier's address or from this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from veripo_ray.errors import DataError
from veripo_ray.records import Verdict
from veripo_ray.verifier.client import VerifierClient
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.verify import Item, undecided, verify

_AT_ONCE = 256


def verify_file(file: Path, url: str | None, out: TextIO | None = None) -> int:
    """Write one verdict a line (JSON), in the order of the lines; return how many carry an error.

    A line that is no item gets a verdict with that error. Raises DataError for a missing file.
    """
    if not file.is_file():
        raise DataError(f"there is no file {file}", fix="give a JSONL file of items")
    errors = 0
    with file.open(encoding="utf-8", errors="replace") as lines:
        while few := list(islice(lines, _AT_ONCE)):
            for verdict in _verdicts(few, url):
                errors += verdict.error is not None
                (out or sys.stdout).write(verdict.model_dump_json() + "\n")
    return errors


def _verdicts(lines: list[str], url: str | None) -> Iterator[Verdict]:
    read = [_item(line) for line in lines if line.strip()]
    items = [item for item in read if isinstance(item, Item)]
    judged = iter(VerifierClient(url).verify(items) if url else verify(items, Rules()))
    for item in read:
        yield next(judged) if isinstance(item, Item) else undecided(item)


def _item(line: str) -> Item | str:
    try:
        return Item.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"the line is no item: {'.'.join(map(str, first['loc']))}: {first['msg']}"
