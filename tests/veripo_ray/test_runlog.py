"""What a run writes about itself can be read at any moment, and continued."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veripo_ray.errors import DataError
from veripo_ray.runlog import (
    Cost,
    MetricsLog,
    SecondsPerSample,
    Stage,
    Summary,
    read_metrics,
    read_summary,
    write_atomic,
    write_summary,
)

STAGE = Stage(
    iteration=0,
    phase="initial",
    accuracy=0.3,
    inconsistency=0.4,
    mean_think_tokens=20.0,
    repetition=0.05,
    format=0.95,
)


def write_steps(folder: Path, *steps: int) -> int:
    with MetricsLog(folder, tensorboard=False) as log:
        for step in steps:
            log.append("grpo", 1, step, {"loss": step / 10}, time=float(step))
        return log.size()


def steps_of(folder: Path) -> list[int]:
    return [point.step for point in read_metrics(folder)]


def test_summary_has_the_keys_that_others_rely_on(tmp_path: Path) -> None:
    write_summary(tmp_path, Summary(stages=(STAGE,)))
    found = json.loads((tmp_path / "summary.json").read_text())
    assert set(found) >= {
        "stages", "seconds_per_sample", "phase_switch_seconds", "decodes", "encodes", "videos",
    }  # fmt: skip
    assert set(found["stages"][0]) >= {
        "iteration", "phase", "accuracy", "inconsistency", "mean_think_tokens", "repetition",
        "format", "seconds", "samples", "pairs", "logprob_gap_max",
    }  # fmt: skip
    assert set(found["seconds_per_sample"]) == {"grpo", "dpo"}


def test_a_summary_survives_the_trip_with_keys_of_newer_runs(tmp_path: Path) -> None:
    stage = STAGE.model_copy(update={"iteration": 2, "phase": "grpo"})
    summary = Summary(
        stages=(STAGE, Stage(**stage.model_dump(), colour="blue")),
        seconds_per_sample=SecondsPerSample(grpo=0.5),
        cost={"grpo": Cost(samples=4, parts={"sampling": 2.0})},
    )
    write_summary(tmp_path, summary)
    again = read_summary(tmp_path)
    assert again == summary
    assert again is not None
    assert again.stages[1].model_extra == {"colour": "blue"}
    assert [stage.label for stage in again.stages] == ["initial", "grpo 2"]


def test_a_figure_of_no_responses_is_unknown_and_strict_json(tmp_path: Path) -> None:
    figures = {**STAGE.model_dump(), "inconsistency": math.nan, "accuracy_se": math.nan}
    write_summary(tmp_path, Summary(stages=(Stage.model_validate(figures),)))
    text = (tmp_path / "summary.json").read_text()
    (stage,) = json.loads(text, parse_constant=pytest.fail)["stages"]
    assert stage["inconsistency"] is stage["accuracy_se"] is None


def test_a_damaged_summary_is_named_with_the_key_at_fault(tmp_path: Path) -> None:
    assert read_summary(tmp_path) is None
    (tmp_path / "summary.json").write_text('{"decodes": -1}')
    with pytest.raises(DataError, match=r"summary\.json cannot be read: decodes"):
        read_summary(tmp_path)


def test_cost_a_sample_is_all_parts_over_trained_samples() -> None:
    assert Cost(samples=4, parts={"sampling": 6.0, "learning": 2.0}).per_sample == 2.0
    assert Cost(samples=0, parts={"sampling": 6.0}).per_sample is None


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.json", "old")
    with pytest.raises(TypeError):
        write_atomic(path, 3)  # type: ignore[arg-type]
    with pytest.raises(IsADirectoryError):
        write_atomic(_folder(tmp_path / "b"), "new")
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b"]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_metrics_are_a_json_object_a_line(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"phase": "grpo", "iteration": 1, "step": s, "time": float(s), "values": {"loss": s / 10}}
        for s in (1, 2)
    ]


def test_a_step_is_on_disk_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.append("grpo", 1, 1, {"loss": 0.5})
        (point,) = read_metrics(tmp_path)
    assert point.values == {"loss": 0.5}
    assert point.time > 1e9


def test_numbers_that_are_none_survive_as_strict_json(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.append("grpo", 1, 1, {"loss": math.nan, "norm": math.inf, "low": -math.inf})
    line = (tmp_path / "metrics.jsonl").read_text()
    json.loads(line, parse_constant=pytest.fail)
    values = read_metrics(tmp_path)[0].values
    assert math.isnan(values["loss"])
    assert (values["norm"], values["low"]) == (math.inf, -math.inf)


def test_a_torn_last_line_is_ignored_and_then_overwritten(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert steps_of(tmp_path) == [1]
    write_steps(tmp_path, 3)
    assert steps_of(tmp_path) == [1, 3]


def test_a_bad_line_in_the_middle_is_named(tmp_path: Path) -> None:
    write_steps(tmp_path, 1)
    path = tmp_path / "metrics.jsonl"
    path.write_text("not json\n" + path.read_text())
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be read in line 1"):
        read_metrics(tmp_path)


def test_steps_after_the_checkpoint_are_replaced_on_resume(tmp_path: Path) -> None:
    size = write_steps(tmp_path, 1, 2)
    write_steps(tmp_path, 3, 4)
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.truncate(size)
        assert log.size() == size
        log.append("grpo", 1, 3, {"loss": 9.0})
    assert steps_of(tmp_path) == [1, 2, 3]


def test_a_log_shorter_than_its_checkpoint_is_refused(tmp_path: Path) -> None:
    with (
        MetricsLog(tmp_path, tensorboard=False) as log,
        pytest.raises(DataError, match="fewer than the 5 of its checkpoint"),
    ):
        log.truncate(5)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 400))
def test_any_cut_leaves_whole_lines_in_order(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.unlink(missing_ok=True)
    size = write_steps(tmp_path, 1, 2, 3, 4)
    path.write_bytes(path.read_bytes()[: min(cut, size)])
    whole = steps_of(tmp_path)
    assert whole == [1, 2, 3, 4][: len(whole)]
    write_steps(tmp_path, 9)
    assert steps_of(tmp_path) == [*whole, 9]


def test_tensorboard_shows_every_step_once_after_a_resume(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.append("grpo", 1, 1, {"loss": 0.5})
        size = log.size()
        log.append("grpo", 1, 2, {"loss": 0.4})
    with MetricsLog(tmp_path) as log:
        log.truncate(size)
        log.append("grpo", 1, 2, {"loss": 0.3})
        log.append("dpo", 1, 1, {"loss": 0.7})
    assert scalars(tmp_path / "tensorboard") == {
        "grpo/loss": {1: 0.5, 2: 0.3},
        "dpo/loss": {3: 0.7},
    }


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Reads event files as TensorBoard does: a session's start drops the steps from it on."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.iterdir()):
        for data in tfrecords(path.read_bytes()):
            event = Event.FromString(data)
            if event.session_log.status == event.session_log.START:
                for steps in found.values():
                    for step in [s for s in steps if s >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = round(value.simple_value, 6)
    return found


def tfrecords(data: bytes) -> Iterator[bytes]:
    """TFRecord: length (8 bytes), its checksum (4), the data, its checksum (4)."""
    while data:
        length = int.from_bytes(data[:8], "little")
        yield data[12 : 12 + length]
        data = data[12 + length + 4 :]
