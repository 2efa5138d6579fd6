"""`veripo status` where there is nothing to show says so, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import status
from veripo_ray.errors import ConfigError, DataError, ResourceError
from veripo_ray.progress import Status
from veripo_ray.progress.written import STATUS, read_status, write_status
from veripo_ray.runlog import Stage


def test_a_status_reads_back_as_it_was_written(tmp_path: Path) -> None:
    figures = dict.fromkeys(("accuracy", "inconsistency", "mean_think_tokens"), 0.5)
    stage = Stage(iteration=0, phase="initial", repetition=None, format=1.0, **figures)
    written = Status(run="night", phase="grpo", step=3, steps=8, pairs=7, stages=(stage,))
    write_status(tmp_path, written)
    found = read_status(tmp_path)
    assert found is not None
    assert (found.status, found.ended) == (written, False)
    (tmp_path / STATUS).write_text("{}")
    with pytest.raises(DataError, match=r"status\.json is no status of a run"):
        read_status(tmp_path)


@pytest.mark.parametrize(
    ("which", "address", "kind", "says"),
    [
        (None, None, ConfigError, "no run is named"),
        ("runs/nothing", None, ConfigError, "runs/nothing holds no run"),
        (None, "http://10.0.0.1:8265", ConfigError, "is the address of a dashboard"),
        (None, "127.0.0.1:{port}", ResourceError, "nothing answers at 127.0.0.1:"),
    ],
)
def test_what_cannot_be_asked_is_told(
    monkeypatch: pytest.MonkeyPatch,
    free_port: Callable[[], int],
    which: str | None,
    address: str | None,
    kind: type[Exception],
    says: str,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(kind, match=says):
        status.show(which, address and address.format(port=free_port()))
