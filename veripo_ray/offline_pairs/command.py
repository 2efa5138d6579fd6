"""`veripo pairs FILE`: pairs to a file or to standard output, and what became of the rollouts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from veripo_ray.errors import DataError
from veripo_ray.offline_pairs import settings
from veripo_ray.offline_pairs.build import Account, build_file
from veripo_ray.offline_pairs.printed import show


def run(
    file: Path,
    out: Path | None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Account:
    """out: None writes the pairs to standard output. overrides: settings as key=value; options:
    settings by name, None for one that is not set."""
    cfg = settings.read(overrides, options or {})
    if out is not None and out.resolve() == file.resolve():
        raise DataError(f"{out} is the file of the rollouts", fix="give --out another name")
    try:
        with nullcontext(sys.stdout) if out is None else out.open("w", encoding="utf-8") as target:
            account = build_file(file, target, cfg)
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}", fix="check --out") from None
    show(account, cfg, console or Console(stderr=True, highlight=False))
    return account
