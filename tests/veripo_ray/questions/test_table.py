"""A table of questions gives back what it was given, by row and by id, and holds none of it."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veripo_ray.errors import DataError
from veripo_ray.questions import QuestionTable, table
from veripo_ray.records import Kind, Question

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
questions_of_any_kind = st.builds(
    Question,
    id=texts,
    text=texts,
    kind=st.sampled_from(Kind),
    gold=texts,
    options=st.lists(texts, max_size=4).map(tuple),
    video=st.none() | texts,
    images=st.lists(texts, max_size=2).map(tuple),
    demonstration=st.none() | texts,
)


def synthetic(count: int, length: int = 100) -> Iterator[Question]:
    for row in range(count):
        yield Question(id=f"q{row}", text="?" * length, kind=Kind.NUMERIC, gold=str(row))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(questions_of_any_kind, max_size=8, unique_by=lambda q: q.id), st.randoms())
def test_what_was_put_in_comes_out_by_row_and_by_id(tmp_path, questions, random):
    QuestionTable.write(tmp_path / "train", questions)
    opened = pickle.loads(pickle.dumps(QuestionTable(tmp_path / "train")))
    assert len(opened) == len(questions)
    assert list(opened) == questions
    rows = random.sample(range(len(questions)), len(questions))
    assert opened.take(rows) == [questions[row] for row in rows]
    assert [opened.row_of(question.id) for question in questions] == list(range(len(questions)))


def test_ids_that_share_their_key_are_told_apart(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(table, "_key", len)
    questions = QuestionTable.write(tmp_path / "train", synthetic(30))
    assert [questions.row_of(f"q{row}") for row in range(30)] == list(range(30))
    with pytest.raises(KeyError, match="q31"):
        questions.row_of("q31")


def test_a_row_or_an_id_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    questions = QuestionTable.write(tmp_path / "train", synthetic(3))
    for row in (-1, 3):
        with pytest.raises(IndexError, match="of 3 questions"):
            questions[row]
    with pytest.raises(KeyError):
        questions.row_of("q3")


def test_a_table_that_was_not_finished_or_was_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train"
    with pytest.raises(DataError, match="new run in another --output"):
        QuestionTable(path)
    QuestionTable.write(path, synthetic(3))

    def torn() -> Iterator[Question]:
        yield from synthetic(2)
        raise DataError("the file is damaged here")

    with pytest.raises(DataError, match="damaged here"):
        QuestionTable.write(path, torn())
    with pytest.raises(DataError, match="cannot be read"):
        QuestionTable(path)
    QuestionTable.write(path, synthetic(3))
    records = path.with_name("train.msgpack")
    records.write_bytes(records.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"has \d+ bytes, not \d+"):
        QuestionTable(path)


def test_a_question_costs_twenty_bytes_of_memory_whatever_its_length(tmp_path: Path) -> None:
    for length in (10, 1000):
        QuestionTable.write(tmp_path / "train", synthetic(20_000, length))
        tracemalloc.start()
        opened = QuestionTable(tmp_path / "train")
        assert opened[19_999].gold == "19999"
        assert opened.row_of("q7") == 7
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 20 * 20_000 + 50_000


def test_rows_may_come_as_an_array_and_many_are_read_in_order(tmp_path: Path) -> None:
    questions = QuestionTable.write(tmp_path / "train", synthetic(600))
    assert [q.id for q in questions] == [f"q{row}" for row in range(600)]
    assert [q.id for q in questions.take(np.array([5, 599], np.int32))] == ["q5", "q599"]
