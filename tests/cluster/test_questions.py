"""A run's questions are checked and packed once; a resumed run asks the same ones by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.questions import pack, unpack
from veripo_ray import config, recipe
from veripo_ray.errors import DataError

ROW = {"text": "How many?", "kind": "numeric", "gold": "1"}


@pytest.fixture
def run(recipe_file: Path, tmp_path: Path) -> config.Run:
    """1,500 good rows and as many bad ones to train on, and two good ones held out."""
    for part, count in (("train", 1500), ("heldout", 2)):
        rows = [ROW | {"id": f"{part}-{n}"} for n in range(count)]
        rows += [ROW | {"id": f"{part}-{n}", "gold": "?"} for n in range(count) if count > 2]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = [f"data.{part}={tmp_path / part}.jsonl" for part in ("train", "heldout")]
    return recipe.load(recipe_file, ["data.tinyworld=null", *files])


def test_what_can_be_used_is_packed_and_what_cannot_is_counted(
    run: config.Run, tmp_path: Path
) -> None:
    questions = pack(run, tmp_path / "run")
    assert [q.id for q in questions.train] == [f"train-{n}" for n in range(1500)]
    assert [q.id for q in questions.heldout] == ["heldout-0", "heldout-1"]
    assert questions.left_out.count == 1500
    assert questions.left_out.first[999].name == "train-999"
    assert "gold answer '?'" in questions.left_out.first[999].reason
    assert len(questions.left_out.first) == 1000


def test_a_resumed_run_has_its_questions_though_their_files_have_changed(
    run: config.Run, tmp_path: Path
) -> None:
    before = pack(run, tmp_path / "run")
    (tmp_path / "train.jsonl").write_text(json.dumps(ROW | {"id": "another"}))
    after = unpack(tmp_path / "run")
    assert list(after.train) == list(before.train)
    assert after.left_out == before.left_out


def test_a_run_that_has_lost_its_questions_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read.*left_out.json"):
        unpack(tmp_path)
