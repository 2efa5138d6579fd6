"""Two attempts at one run, in processes of their own: what the newer one has, the older one cannot
spoil."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from veripo_ray import journal
from veripo_ray.attempt import Attempt
from veripo_ray.errors import TakenOver
from veripo_ray.runstate import Checkpoints, RunState

WRITER = """
import sys
from pathlib import Path
from veripo_ray.attempt import Attempt
from veripo_ray.journal import RunJournals
from veripo_ray.records import JudgedGroup

folder, name = Path(sys.argv[1]), sys.argv[2]
attempt = Attempt.begin(folder)
print("begun", flush=True)
journals = RunJournals(folder, attempt.writing)
journals.truncate(dict.fromkeys(journals.sizes(), 0))
for number in range(int(sys.argv[3])):
    journals.verdicts.append([JudgedGroup(group_id=f"{name}.{number}")])
print("wrote all", flush=True)
"""


def _writer(folder: Path, name: str, groups: int) -> subprocess.Popen[str]:
    """An attempt that empties the journal and appends groups to it, as fast as it can."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), name, str(groups)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_attempt_that_was_overtaken_while_writing_leaves_nothing_in_the_journal(
    tmp_path: Path,
) -> None:
    older = _writer(tmp_path, "older", 10_000_000)
    assert older.stdout
    assert older.stdout.readline() == "begun\n"
    verdicts = tmp_path / "journal" / "verdicts.msgpack"
    while not (verdicts.exists() and verdicts.stat().st_size):
        time.sleep(0.01)
    newer = _writer(tmp_path, "newer", 500)
    said, complaint = newer.communicate(timeout=60)
    assert said == "begun\nwrote all\n", complaint
    _, complaint = older.communicate(timeout=60)
    assert older.returncode
    assert "attempt 2 has taken over" in complaint
    ids = [judged.group_id for judged in journal.read_judged(tmp_path)]
    assert ids == [f"newer.{number}" for number in range(500)]


def test_attempts_that_begin_at_once_have_numbers_of_their_own(tmp_path: Path) -> None:
    writers = [_writer(tmp_path, str(number), 0) for number in range(6)]
    for writer in writers:
        said, complaint = writer.communicate(timeout=60)
        assert said.startswith("begun"), complaint
    assert Attempt.begin(tmp_path).number == 7


def test_a_checkpoint_of_an_overtaken_attempt_is_refused(tmp_path: Path) -> None:
    """The learner's ranks, which know nothing of attempts, may still be writing into it."""
    checkpoints, state = Checkpoints(tmp_path), RunState.beginning(3)
    old = Attempt.begin(tmp_path)
    with old.writing():
        late = checkpoints.begin(old.number)
    late.mkdir()
    new = Attempt.begin(tmp_path)
    with new.writing():
        fresh = checkpoints.begin(new.number)
    assert fresh != late
    assert not late.exists()
    late.mkdir()  # by a rank that has not heard of it
    fresh.mkdir()
    with pytest.raises(TakenOver, match="attempt 2 has taken over"), old.writing():
        checkpoints.commit(late, state, keep=2)
    with new.writing():
        kept = checkpoints.commit(fresh, state, keep=2)
    assert kept == checkpoints.latest()
