"""A checkpoint is whole or not there, the newest is found, and what is still needed is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from veripo_ray.errors import CheckpointError
from veripo_ray.runstate import Checkpoints, RunState, read_state


def _write(checkpoints: Checkpoints, state: RunState, keep: int = 2) -> Path:
    writing = checkpoints.begin()
    (writing / "hf").mkdir(parents=True)
    return checkpoints.commit(writing, state, keep)


def test_the_position_comes_back_as_it_was(tmp_path: Path) -> None:
    state = RunState.beginning(questions=5)
    state.step, state.order = 3, np.array([4, 0, 1], np.int32)
    state.accuracy[4] = 0.5
    state.spend("grpo", "sampling", 2.0)
    state.spend("grpo", "sampling", 1.0)
    state.count("grpo", 6)
    final = _write(Checkpoints(tmp_path), state)
    back = read_state(final)
    assert back.model_dump() == state.model_dump()
    np.testing.assert_array_equal(back.order, state.order)
    np.testing.assert_array_equal(back.accuracy, [np.nan] * 4 + [0.5])
    assert back.cost["grpo"].parts == {"sampling": 3.0}
    assert back.cost["grpo"].per_sample == 0.5


def test_a_checkpoint_cut_short_is_not_found_and_is_cleared_away(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    whole = _write(checkpoints, RunState())
    torn = checkpoints.begin()
    (torn / "hf").mkdir(parents=True)
    assert checkpoints.latest() == whole
    assert not checkpoints.begin().exists()
    assert not torn.exists()


def test_old_checkpoints_go_but_the_reference_of_the_phase_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    state = RunState()
    first = _write(checkpoints, state)
    state.reference = first.name
    written = [_write(checkpoints, state) for _ in range(4)]
    assert first.exists()
    assert [path.exists() for path in written] == [False, False, True, True]
    assert (checkpoints.folder / "latest").resolve() == written[-1]


def test_an_unreadable_position_names_the_file_and_the_way_back(tmp_path: Path) -> None:
    final = _write(Checkpoints(tmp_path), RunState())
    for name in ("questions.npz", "run.json"):
        (final / name).write_text("{")
        with pytest.raises(CheckpointError, match="the one before it"):
            read_state(final)


def test_a_question_costs_a_checkpoint_eight_bytes(tmp_path: Path) -> None:
    def size(questions: int) -> int:
        state = RunState.beginning(questions)
        state.order = np.arange(questions, dtype=np.int32)
        state.accuracy[:] = 0.625
        final = _write(Checkpoints(tmp_path / str(questions)), state)
        return sum((final / name).stat().st_size for name in ("run.json", "questions.npz"))

    assert size(100_000) - size(1000) == 8 * 99_000


def test_a_new_phase_starts_from_nothing_but_keeps_what_the_run_has() -> None:
    state = RunState(step=4, cursor=9, order=np.arange(3), pairs=3, samples=2, logprob_gap_max=1e-6)
    state.count("dpo", 5)
    state.next_phase(2)
    assert (state.phase_index, state.iteration, state.step, state.cursor) == (1, 2, 0, 0)
    assert (len(state.order), state.pairs, state.samples, state.logprob_gap_max) == (0, 0, 0, 0.0)
    assert state.cost["dpo"].samples == 5
