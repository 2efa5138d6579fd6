"""`veripo verify` writes a verdict for every line, good or not."""

from __future__ import annotations

import io

import httpx
import pytest
from typer.testing import CliRunner

from veripo_ray.cli import app
from veripo_ray.errors import CheckpointError, ConfigError, DataError
from veripo_ray.records import Kind, Verdict
from veripo_ray.verifier import command, tokens, wire
from veripo_ray.verifier.client import VerifierClient
from veripo_ray.verifier.command import show_file, verify_file
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.verify import Item, verify

GOOD = Item(kind=Kind.NUMERIC, gold="2", response="<think> f1 so 2 </think> <answer> 2 </answer>")


def test_every_line_gets_its_verdict(tmp_path):
    file, out = tmp_path / "items.jsonl", io.StringIO()
    file.write_text("\n".join([GOOD.model_dump_json(), "", "{}", GOOD.model_dump_json()]))
    assert verify_file(file, None, out) == 1
    first, bad, last = [Verdict.model_validate_json(line) for line in out.getvalue().splitlines()]
    assert first == last
    assert first.correct
    assert "no item" in bad.error


def test_a_table_says_what_is_wrong(tmp_path):
    file, out = tmp_path / "items.jsonl", io.StringIO()
    wavering = GOOD.model_copy(update={"response": GOOD.response.replace("so 2", "so 3")})
    rows = [GOOD, wavering.model_copy(update={"question_id": "clip-7"})]
    file.write_text("\n".join([*(row.model_dump_json() for row in rows), "{}"]))
    assert show_file(file, None, out) == 1
    shown = " ".join(out.getvalue().split())
    assert "clip-7" in shown
    assert "consistency" in shown
    assert "the thinking concludes '3'" in shown
    assert "3 responses" in shown
    assert "1 with errors" in shown


@pytest.mark.parametrize(("lines", "status"), [([GOOD], 0), ([GOOD, None], 1)])
def test_the_exit_status_says_whether_an_item_could_not_be_judged(tmp_path, lines, status):
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(line.model_dump_json() if line else "{}" for line in lines))
    done = CliRunner().invoke(app, ["verify", str(file), "--json"])
    assert done.exit_code == status
    assert len(done.stdout.splitlines()) == len(lines)


def test_a_verifier_elsewhere_is_asked_with_the_token_of_the_variable(tmp_path, monkeypatch):
    asked: list[tuple[str, str]] = []

    class Recorded(VerifierClient):
        def __init__(self, url: str, **more: str) -> None:
            asked.append((url, more["token"]))
            transport = httpx.MockTransport(
                lambda request: httpx.Response(
                    200, content=wire.write_verdicts(verify([GOOD], Rules()), wire.MSGPACK)
                )
            )
            super().__init__(url, transport=transport, **more)

    file, out = tmp_path / "items.jsonl", io.StringIO()
    file.write_text(GOOD.model_dump_json())
    monkeypatch.setattr(command, "VerifierClient", Recorded)
    monkeypatch.setenv("MY_TOKEN", "secret")
    assert verify_file(file, "http://v", out, token_env="MY_TOKEN") == 0
    assert asked == [("http://v", "secret")]
    with pytest.raises(ConfigError, match="--token-env NOT_SET"):
        verify_file(file, "http://v", out, token_env="NOT_SET")


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
