"""Labelled cases are whole and loaded with errors that a user can act on; the page about them says
what the rules judge does today."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from veripo_ray.errors import DataError
from veripo_ray.records import Kind
from veripo_ray.scoring import answers
from veripo_ray.verifier import labelled
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.labelled import Labelled, load, tinyworld

PAGE = (Path(labelled.__file__).parent / "README.md").read_text(encoding="utf-8")
CASES = load("video_qa")
SPLITS = ("dev", "held-out", "fresh")
GOOD = {
    "id": "one",
    "question": "how many?",
    "kind": "numeric",
    "thinking": "so 3",
    "answer": "3",
    "consistent": True,
    "why": "three is three",
}


def judged(cases):
    return list(zip(cases, Rules().judge_now([one.case for one in cases]), strict=True))


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_the_hand_checked_file_is_large_and_balanced_in_every_part():
    assert len(CASES) >= 80
    assert {one.kind for one in CASES} == set(Kind)
    assert {one.split for one in CASES} == set(SPLITS)
    for split in SPLITS:
        part = Counter(one.consistent for one in CASES if one.split == split)
        assert part[True] == part[False] >= 18


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.id)
def test_every_case_is_a_response_with_a_reasoned_label(one):
    parts = answers.split(one.response)
    assert parts.well_formed
    assert (parts.thinking_text, parts.answer_text) == (one.thinking, one.answer)
    assert 30 <= len(one.thinking.split()) <= 160
    assert len(one.why.split()) >= 4
    assert (one.kind is Kind.CHOICE) == (len(one.options) > 1)
    assert len(set(one.options)) == len(one.options)


def test_no_two_cases_are_the_same():
    for part in ("id", "thinking", "question"):
        assert len({getattr(one, part) for one in CASES}) == len(CASES)


def test_the_page_explains_exactly_the_cases_on_which_rules_and_label_do_not_agree():
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+) \| (\w+) \| (\S.*\S) \|$", PAGE, re.MULTILINE)
    words = {True: "consistent", False: "inconsistent", None: "undecided"}
    assert {(id, label, said) for id, label, said, _ in rows} == {
        (one.id, words[one.consistent], words[word.consistent])
        for one, word in judged(CASES)
        if word.consistent is not one.consistent
    }
    assert len(rows) == len({row[0] for row in rows})


def test_the_page_states_the_figures_of_today():
    cells = []
    for split in SPLITS:
        words = [(w.consistent, one.consistent) for one, w in judged(CASES) if one.split == split]
        undecided = sum(said is None for said, _ in words)
        right = sum(said is label for said, label in words)
        cells.append(f"{right}, {undecided}, {len(words) - right - undecided}")
    assert f"showed | {cells[0]} | {cells[1]} | **{cells[2]}** |" in PAGE
    assert f"holds {len(CASES)} chains" in PAGE


def test_rules_are_exact_on_the_tiny_world():
    cases = load("tinyworld")
    assert len(cases) == 400
    assert 120 <= sum(one.consistent for one in cases) <= 280
    for one, word in judged(cases):
        assert word.consistent is one.consistent, one.id


def test_tiny_world_cases_are_made_anew_to_the_letter():
    assert tinyworld.cases(20) == tinyworld.cases(20) == tinyworld.cases(40)[:20]
    assert tinyworld.cases(20) != tinyworld.cases(20, seed=1)


def test_a_users_file_is_loaded(tmp_path):
    more = {**GOOD, "id": "two", "kind": "choice", "options": ["a", "b"], "split": "mine"}
    cases = load(write(tmp_path / "mine.jsonl", GOOD, "", more))
    assert [one.id for one in cases] == ["one", "two"]
    assert cases[0] == Labelled.model_validate(GOOD)
    assert (cases[1].split, cases[1].case.options) == ("mine", ("a", "b"))


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("{", "Invalid JSON"),
        ("[]", "line 3"),
        ({**GOOD, "id": "one"}, "the id 'one' is there already"),
        ({**GOOD, "id": "x", "why": " "}, "why"),
        ({**GOOD, "id": "x", "kind": "guess"}, "kind"),
        ({**GOOD, "id": "x", "consistent": "perhaps"}, "consistent"),
        ({**GOOD, "id": "x", "gold": "3"}, "gold"),
        ({**GOOD, "id": "x", "thinking": "so </think> 3"}, "make no response: </think> occurs 2"),
        ({**GOOD, "id": "x", "kind": "choice", "options": ["a"]}, "two options"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(tmp_path, bad, problem):
    file = write(tmp_path / "mine.jsonl", GOOD, "", bad)
    with pytest.raises(DataError, match="fix: a line is a JSON object with id, split") as caught:
        load(file)
    assert str(file) in str(caught.value)
    assert "line 3: " in str(caught.value)
    assert problem in str(caught.value)


def test_many_bad_lines_are_counted(tmp_path):
    with pytest.raises(DataError, match="and 4 more"):
        load(write(tmp_path / "mine.jsonl", *["{}"] * 9))


def test_an_empty_or_missing_file_is_no_set_of_cases(tmp_path):
    with pytest.raises(DataError, match="it holds no case"):
        load(write(tmp_path / "mine.jsonl", "", ""))
    with pytest.raises(DataError, match="give one of video_qa, tinyworld"):
        load(tmp_path / "nowhere.jsonl")
