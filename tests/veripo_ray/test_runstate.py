"""A checkpoint is whole or not there, the newest is found, and what is still needed is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from veripo_ray.errors import CheckpointError
from veripo_ray.runstate import Checkpoints, RunState, read_state


def _write(checkpoints: Checkpoints, state: RunState, keep: int = 2) -> Path:
    writing = checkpoints.begin()
    (writing / "hf").mkdir(parents=True)
    return checkpoints.commit(writing, state, keep)


def test_the_position_comes_back_as_it_was(tmp_path: Path) -> None:
    state = RunState(step=3, order=["a", "b"], mean_accuracy={"a": 0.5})
    state.spend("grpo", "sampling", 2.0)
    state.spend("grpo", "sampling", 1.0)
    state.count("grpo", 6)
    final = _write(Checkpoints(tmp_path), state)
    back = read_state(final)
    assert back == state
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
    (final / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="the one before it"):
        read_state(final)


def test_a_new_phase_starts_from_nothing_but_keeps_what_the_run_has() -> None:
    state = RunState(step=4, cursor=9, order=["a"], pairs=3, samples=2, logprob_gap_max=1e-6)
    state.count("dpo", 5)
    state.next_phase(2)
    assert (state.phase_index, state.iteration, state.step, state.cursor) == (1, 2, 0, 0)
    assert (state.order, state.pairs, state.samples, state.logprob_gap_max) == ([], 0, 0, 0.0)
    assert state.cost["dpo"].samples == 5
