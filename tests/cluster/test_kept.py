"""A whole run that is kept at a URI: stopped, and gone on with by a machine that has none of it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from veripo_ray import journal
from veripo_ray.mirror import Mirror
from veripo_ray.storage import Store, local_folder

pytestmark = pytest.mark.timeout(900)
Result = tuple[int, str]


def test_a_run_kept_at_a_uri_goes_on_on_another_machine(
    recipe_file: Path,
    terminate_when: Callable[..., Result],
    veripo: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in dpo, so that the reference, too, takes what an earlier checkpoint had."""
    uri = f"file://{tmp_path}/bucket/run"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    metrics = local_folder(uri) / "metrics.jsonl"
    arguments = ("train", recipe_file, "schedule=[grpo,dpo]", "--output", uri)
    status, said = terminate_when(
        lambda: metrics.exists() and '"phase":"dpo"' in metrics.read_text(), *arguments
    )
    assert status == 128 + signal.SIGTERM, said
    last = said.strip().splitlines()[-1]
    assert last.startswith(
        f"stopped by SIGTERM; --resume goes on from checkpoint {uri}/checkpoints"
    )
    status, said = veripo(*arguments)
    assert status == 2
    assert f"{uri} already holds a run" in " ".join(said.split())

    shutil.rmtree(tmp_path / "cache")
    status, said = veripo(*arguments, "--resume")
    assert status == 0, said
    assert said.strip().splitlines()[-1] == f"finished: {uri}"
    summary = json.loads(Store(uri).read("summary.json"))
    assert [stage["phase"] for stage in summary["stages"]] == ["initial", "grpo", "dpo"]
    assert all(0 < stage["logprob_gap_max"] < 1e-4 for stage in summary["stages"])
    assert Store(uri).has("report.html")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    status, said = veripo(*arguments, "--resume")
    assert status == 2
    assert f"storage={uri} output={metrics.parent}" in " ".join(said.split())

    assert Mirror(uri).restore(tmp_path / "third")
    for records in (
        journal.read_groups(tmp_path / "third"),
        journal.read_pairs(tmp_path / "third"),
    ):
        ids = [record.id for record in records]
        assert ids
        assert len(ids) == len(set(ids))
