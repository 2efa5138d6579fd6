"""What a model's name means: a folder, the Hub's local cache, or an error that says what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants as hub
import pytest

from veripo_ray.errors import CheckpointError
from veripo_ray.models import local_folder, model_folder

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped_checkpoint: Path) -> Path:
    """A local cache with two revisions of one model, laid out as huggingface_hub does."""
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--Qwen--Tiny-VL"
    (folder / "refs").mkdir(parents=True)
    for revision, commit in COMMITS.items():
        (folder / "refs" / revision).write_text(commit)
        shutil.copytree(shipped_checkpoint, folder / "snapshots" / commit)
    return folder


def test_a_name_on_the_hub_is_its_folder_in_the_local_cache(cache: Path) -> None:
    for weights in (True, False):
        assert (
            model_folder("Qwen/Tiny-VL", weights=weights) == cache / "snapshots" / COMMITS["main"]
        )
    assert model_folder("Qwen/Tiny-VL@v2") == cache / "snapshots" / COMMITS["v2"]


def test_a_folder_that_is_there_comes_before_the_hub(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Qwen" / "Tiny-VL").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_folder("Qwen/Tiny-VL") == tmp_path / "Qwen" / "Tiny-VL"
    assert model_folder("/models/none") == Path("/models/none")
    assert (model_folder("tinyworld") / "config.json").is_file()


@pytest.mark.parametrize("name", ["Qwen/Tinny-VL", "Qwen/Tiny-VL@v3", "checkpoints/mine"])
def test_what_is_in_neither_place_is_refused_with_the_ways_to_get_it(
    cache: Path, name: str
) -> None:
    assert local_folder(name) is None
    with pytest.raises(CheckpointError) as caught:
        model_folder(name)
    said = str(caught.value)
    assert f"model = {name} is no folder here, and cannot be fetched" in said
    assert "give the path of a folder" in said
    assert f"hf download {name.partition('@')[0]}" in said
