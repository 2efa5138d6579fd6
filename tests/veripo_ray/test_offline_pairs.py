"""Rollouts of any trainer become pairs for any trainer; what became none is accounted for."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from veripo_ray import cli
from veripo_ray.errors import ConfigError, DataError
from veripo_ray.offline_pairs import OfflinePairs, build_file, rows
from veripo_ray.offline_pairs.command import run
from veripo_ray.pairs import ENOUGH
from veripo_ray.questions.left_out import LeftOut

CHAIN = "f1 red 1 f2 blue 1 f3 red 2"
GOOD = f"<think> {CHAIN} so 2 </think> <answer> 2 </answer>"
WRONG = "<think> f1 red 1 f2 red 2 f3 red 3 so 3 </think> <answer> 3 </answer>"
WAVERING = f"<think> {CHAIN} so 3 </think> <answer> 2 </answer>"
ROW = {"question_id": "q1", "question": "How many?", "kind": "numeric", "gold": "2"}
ALL = ROW | {"responses": [GOOD, WRONG, WAVERING]}


def written(tmp_path: Path, *rows: object) -> Path:
    file = tmp_path / "rollouts.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text("\n".join(lines))
    return file


def built(tmp_path: Path, *rows: object, **settings: object):
    out = io.StringIO()
    account = build_file(written(tmp_path, *rows), out, OfflinePairs.model_validate(settings))
    return account, [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_pair_says_what_it_is_and_why(tmp_path):
    account, (first, *_) = built(tmp_path, ALL)
    assert (first["prompt"], first["chosen"], first["rejected"]) == ("How many?", GOOD, WRONG)
    assert (first["family"], first["question_id"]) == ("accuracy", "q1")
    assert "'3' is wrong" in first["explanation"]
    assert first["chosen_verdict"]["faults"] == []
    assert first["rejected_verdict"]["response"] == 1
    assert first["rejected_verdict"]["correct"] is False
    assert (account.questions, account.responses) == (1, 3)


def test_a_line_a_response_gives_the_same_pairs(tmp_path):
    lines = [ROW | {"response": response} for response in ALL["responses"]]
    assert built(tmp_path, *lines)[1] == built(tmp_path, ALL)[1]


def test_lines_without_an_id_are_of_one_question_by_prompt_and_gold(tmp_path):
    bare = {"prompt": "How many?", "kind": "numeric", "ground_truth": 2}
    lines = [bare | {"completion": GOOD}, bare | {"completion": WRONG}]
    account, pairs = built(tmp_path, *lines, bare | {"ground_truth": 3, "completion": WRONG})
    assert account.questions == 2
    assert {pair["chosen"] for pair in pairs} >= {GOOD}


def test_chat_messages_come_back_as_chat_messages(tmp_path):
    asked = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "How many?"}]}
    ]
    said = [[{"role": "assistant", "content": text}] for text in (GOOD, WRONG)]
    row = {"prompt": asked, "kind": "numeric", "gold": "2", "completions": said}
    _, (first, *_) = built(tmp_path, row)
    assert first["prompt"] == asked
    assert first["chosen"] == said[0]
    assert first["rejected"] == said[1]


def test_a_response_that_was_cut_off_is_never_chosen(tmp_path):
    cut = {"text": GOOD, "finish_reason": "length"}
    _, pairs = built(tmp_path, ROW | {"responses": [cut, WRONG, WAVERING]})
    assert pairs == []


def test_bad_lines_are_named_and_spoil_no_other(tmp_path):
    bad = [
        ("not json", "not JSON"),
        ("[1]", "not a JSON object"),
        (ROW | {"kind": None, "response": GOOD}, "names no kind"),
        (ROW | {"kind": "essay", "response": GOOD}, "'essay'"),
        (ROW | {"gold": "many", "response": GOOD}, "not one number"),
        (ROW | {"gold": "3", "response": GOOD}, "at odds"),
        (ROW | {"question": "", "response": GOOD}, "question is empty"),
        (ROW, "no field 'response'"),
        (ROW | {"responses": []}, "not a list"),
        (ROW | {"responses": [7]}, "neither a text"),
        (ROW | {"responses": [{"text": GOOD, "finish_reason": "bored"}]}, "'bored'"),
    ]
    account, pairs = built(tmp_path, ALL, *(row for row, _ in bad))
    assert pairs == built(tmp_path, ALL)[1]
    assert account.bad.count == len(bad)
    for number, (item, (_, reason)) in enumerate(zip(account.bad.first, bad, strict=True), 2):
        assert item.name.endswith(f":{number}")
        assert reason in item.reason


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
FIELDS = ("question", "prompt", "gold", "kind", "options", "response", "responses", "id")
odd = st.dictionaries(st.sampled_from(FIELDS), anything)


@given(st.lists(odd.map(lambda row: ROW | {"response": GOOD} | row), max_size=3))
def test_any_row_is_read_or_named(odd_rows):
    bad = LeftOut()
    read = rows.read([(f"f:{n}", row) for n, row in enumerate(odd_rows)], None, bad)
    assert sum(len(asked.responses) > 0 for asked in read) == len(read)
    assert bad.count + sum(len(asked.responses) for asked in read) >= len(odd_rows)


def test_half_a_surrogate_pair_is_a_bad_line(tmp_path):
    account, pairs = built(tmp_path, ALL, json.dumps(ROW | {"response": GOOD + "\ud800"}))
    assert pairs
    assert "surrogates not allowed" in account.bad.first[0].reason


def test_kind_can_be_said_once_for_all(tmp_path):
    row = {key: value for key, value in ALL.items() if key != "kind"}
    assert built(tmp_path, row, kind="numeric")[1] == built(tmp_path, ALL)[1]


def test_a_question_that_could_not_be_judged_is_masked_and_named(tmp_path):
    silent = {"url": "http://127.0.0.1:9", "model": "m", "attempts": 1, "timeout_s": 1}
    account, pairs = built(tmp_path, ALL, judge="openai", judges={"openai": silent})
    assert pairs == []
    assert account.masked.count == 1
    assert account.masked.first[0].name == "question q1"
    assert account.masked.first[0].reason.startswith("consistency: ")


def test_the_same_seed_gives_the_same_pairs_within_shares_and_quotas(tmp_path):
    lines = [ALL | {"question_id": f"q{number}"} for number in range(20)]
    wanted = {"families": {"accuracy": 1, "consistency": 1}, "quotas": {"accuracy": 3}}
    account, pairs = built(tmp_path, *lines, pairs=wanted | {"per_question": 1}, seed=5)
    again = built(tmp_path, *lines, pairs=wanted | {"per_question": 1}, seed=5)[1]
    assert pairs == again
    assert account.families == {"accuracy": 3, "consistency": 17}
    assert account.left_out[ENOUGH] > 0
    assert len({pair["id"] for pair in pairs}) == 20


def test_a_checkpoints_tokenizer_counts(tmp_path, tiny_checkpoint):
    account, pairs = built(tmp_path, ALL, tokenizer=str(tiny_checkpoint))
    assert account.families.total() == len(pairs) == 2


def test_the_command_writes_pairs_and_prints_what_became_of_the_rollouts(tmp_path):
    file, out = written(tmp_path, ALL, "nonsense"), tmp_path / "pairs.jsonl"
    result = CliRunner().invoke(
        cli.app, ["pairs", str(file), "pairs.per_question=1", "--out", str(out), "--seed", "3"]
    )
    assert result.exit_code == 0, result.output
    assert len(out.read_text().splitlines()) == 1
    assert "1 questions with 3 responses gave 1 pairs" in result.stderr
    assert "accuracy" in result.stderr
    assert "rollouts.jsonl:2: it is not JSON" in result.stderr


def test_what_cannot_be_set_or_written_is_named(tmp_path):
    file, quiet = written(tmp_path, ALL), Console(file=io.StringIO())
    for override, named in (("pears.per_question=1", "pears"), ("seed", "'seed'")):
        with pytest.raises(ConfigError, match=named):
            run(file, None, [override], console=quiet)
    with pytest.raises(ConfigError, match=r"judges\.openai\.url"):
        run(file, None, options={"judge": "openai"}, console=quiet)
    with pytest.raises(DataError, match="nowhere"):
        run(file, tmp_path / "nowhere" / "pairs.jsonl", console=quiet)
    with pytest.raises(DataError, match="is the file of the rollouts"):
        run(file, file, console=quiet)
    with pytest.raises(DataError, match="no file"):
        run(tmp_path / "none.jsonl", None, console=quiet)
