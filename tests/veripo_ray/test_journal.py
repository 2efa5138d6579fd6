"""A journal keeps what was written whole, and forgets exactly what it is told to forget."""

from __future__ import annotations

from pathlib import Path

import pytest

from veripo_ray.errors import DataError
from veripo_ray.journal import Journal, RunJournals, Tail, read, read_groups, read_judged
from veripo_ray.records import JudgedGroup


def _records(*ids: str) -> list[JudgedGroup]:
    return [JudgedGroup(group_id=id_) for id_ in ids]


def _ids(path: Path, start: int = 0) -> list[str]:
    return [record.group_id for record in read(path, JudgedGroup, start)]


def test_records_are_read_in_the_order_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.msgpack", JudgedGroup)
    journal.append(_records("1", "2"))
    journal.append([])
    journal.append(_records("3"))
    assert _ids(journal.path) == ["1", "2", "3"]


def test_a_torn_last_message_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.msgpack"
    journal = Journal(path, JudgedGroup)
    journal.append(_records("1"))
    whole = journal.size()
    journal.append(_records("2"))
    with path.open("r+b") as file:
        file.truncate(journal.size() - 3)
    assert _ids(path) == ["1"]
    reopened = Journal(path, JudgedGroup)
    assert reopened.size() == whole
    reopened.append(_records("3"))
    assert _ids(path) == ["1", "3"]


def test_truncating_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    journals = RunJournals(tmp_path)
    journals.verdicts.append(_records("1"))
    sizes = journals.sizes()
    journals.verdicts.append(_records("2"))
    journals.truncate(sizes)
    assert [record.group_id for record in read_judged(tmp_path)] == ["1"]
    assert list(read_groups(tmp_path)) == []


def test_a_journal_shorter_than_its_checkpoint_says_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.msgpack", JudgedGroup)
    with pytest.raises(DataError, match="fewer than the 10 its checkpoint recorded"):
        journal.truncate(10)


def test_reading_may_start_where_a_phase_began(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.msgpack", JudgedGroup)
    journal.append(_records("1"))
    start = journal.size()
    journal.append(_records("2"))
    assert _ids(journal.path, start) == ["2"]


def test_a_tail_follows_a_journal_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "a.msgpack"
    tail = Tail(path, JudgedGroup)
    assert tail.take() == []
    journal = Journal(path, JudgedGroup)
    journal.append(_records("1", "2"))
    assert len(tail.take()) == 2
    assert tail.take() == []
    journal.append(_records("3"))
    assert tail.take() == _records("3")
