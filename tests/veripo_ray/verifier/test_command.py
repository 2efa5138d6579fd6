"""`veripo verify` writes a verdict for every line, good or not."""

from __future__ import annotations

import io

import pytest

from veripo_ray.errors import CheckpointError, DataError
from veripo_ray.records import Kind, Verdict
from veripo_ray.verifier import tokens
from veripo_ray.verifier.command import verify_file
from veripo_ray.verifier.verify import Item

GOOD = Item(kind=Kind.NUMERIC, gold="2", response="<think> f1 so 2 </think> <answer> 2 </answer>")


def test_every_line_gets_its_verdict(tmp_path):
    file, out = tmp_path / "items.jsonl", io.StringIO()
    file.write_text("\n".join([GOOD.model_dump_json(), "", "{}", GOOD.model_dump_json()]))
    assert verify_file(file, None, out) == 1
    first, bad, last = [Verdict.model_validate_json(line) for line in out.getvalue().splitlines()]
    assert first == last
    assert first.correct
    assert "no item" in bad.error


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        verify_file(tmp_path / "nowhere.jsonl", None)


def test_without_a_checkpoint_words_are_counted():
    assert tokens.counter(None)("a b  c") == 3


def test_a_checkpoints_tokenizer_counts(tiny_checkpoint):
    assert tokens.counter(str(tiny_checkpoint))("<think> f1 red so 3 </think>") == 6


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="tokenizer"):
        tokens.counter(str(tmp_path))
