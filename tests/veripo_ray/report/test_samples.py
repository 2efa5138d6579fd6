"""samples.json: the film and the chains that the report follows through a run."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from veripo_ray.errors import DataError
from veripo_ray.records import Question
from veripo_ray.report.samples import (
    Sample,
    SampleResponse,
    add_stage_samples,
    filmstrip,
    read_samples,
    write_samples,
)

RIGHT = SampleResponse(
    text="<think> so 3 </think> <answer> 3 </answer>", correct=True, consistent=True
)


def decoded(data_uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data_uri.partition(",")[2]))))


def test_responses_of_each_stage_are_kept_beside_each_other(
    tmp_path: Path, a_question: Question
) -> None:
    write_samples(tmp_path, [Sample.of(a_question)])
    add_stage_samples(tmp_path, "initial", {a_question.id: RIGHT})
    later = RIGHT.model_copy(update={"correct": False})
    add_stage_samples(tmp_path, "grpo 1", {a_question.id: later})
    (sample,) = read_samples(tmp_path)
    assert sample.responses == {"initial": RIGHT, "grpo 1": later}
    assert (sample.question, sample.gold, sample.options) == (
        a_question.text,
        a_question.gold,
        a_question.options,
    )


def test_a_stage_done_again_replaces_its_responses(tmp_path: Path, a_question: Question) -> None:
    write_samples(tmp_path, [Sample.of(a_question)])
    add_stage_samples(tmp_path, "initial", {a_question.id: RIGHT})
    undecided = RIGHT.model_copy(update={"consistent": None})
    add_stage_samples(tmp_path, "initial", {a_question.id: undecided})
    add_stage_samples(tmp_path, "initial", {})
    assert read_samples(tmp_path)[0].responses == {"initial": undecided}


def test_a_response_to_another_question_is_refused(tmp_path: Path, a_question: Question) -> None:
    write_samples(tmp_path, [Sample.of(a_question)])
    with pytest.raises(KeyError, match="elsewhere"):
        add_stage_samples(tmp_path, "initial", {"elsewhere": RIGHT})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text('{"samples": [')
    with pytest.raises(DataError, match=r"samples\.json cannot be read"):
        read_samples(tmp_path)


def test_a_tiny_clip_is_enlarged_pixel_by_pixel(film: Callable[..., np.ndarray]) -> None:
    clip = film(16, 28, 56)
    shown = filmstrip(clip, np.arange(16) / 4)
    assert [frame.seconds for frame in shown] == [0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75]
    first = decoded(shown[0].image)
    assert first.shape == (112, 224, 3)
    np.testing.assert_array_equal(first[::4, ::4], clip[1])


def test_a_large_clip_becomes_small_jpegs(film: Callable[..., np.ndarray]) -> None:
    shown = filmstrip(film(20, 360, 640))
    assert len(shown) == 8
    assert all(frame.image.startswith("data:image/jpeg;base64,") for frame in shown)
    assert decoded(shown[3].image).shape == (96, 171, 3)
    assert sum(len(frame.image) for frame in shown) < 60_000


@pytest.mark.parametrize("count", [0, 1, 3, 8, 9, 128])
def test_frames_are_spread_over_the_whole_clip(count: int) -> None:
    clip = np.repeat(np.arange(count, dtype=np.uint8), 4 * 4 * 3).reshape(count, 4, 4, 3)
    places = [int(decoded(frame.image)[0, 0, 0]) for frame in filmstrip(clip)]
    assert len(places) == min(8, count)
    assert places == sorted(set(places))
    if places:
        assert abs(places[0] - (count - 1 - places[-1])) <= 1
