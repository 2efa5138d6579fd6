"""samples.json: a handful of held-out questions with the policy's response at every stage.

The run writes the questions and their film frames once and adds the responses after each
evaluation; the report shows them side by side.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from veripo_ray.errors import DataError
from veripo_ray.records import Question
from veripo_ray.runlog import write_atomic

SAMPLES = "samples.json"
FRAMES = 8  # shown of a clip
FRAME_HEIGHT = 96  # pixels, about
TINY_HEIGHT = 64  # clips lower than this are enlarged pixel by pixel, and kept without loss


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SampleResponse(Part):
    """What the policy of one stage answered. None where the verifier could not decide."""

    text: str
    correct: bool | None
    consistent: bool | None


class Frame(Part):
    """One shown frame of a clip: its place among the sampled frames and a data: URI."""

    seconds: float | None = None
    image: str


class Sample(Part):
    """One held-out question, its film, and the responses by stage label ('initial', 'grpo 1')."""

    id: str
    question: str
    gold: str
    options: tuple[str, ...] = ()
    frames: tuple[Frame, ...] = ()
    responses: dict[str, SampleResponse] = {}

    @classmethod
    def of(
        cls,
        question: Question,
        frames: np.ndarray | None = None,
        seconds: Sequence[float] | None = None,
    ) -> Sample:
        """frames [T, H, W, 3] uint8 with their seconds [T], or None for a question without film."""
        return cls(
            id=question.id,
            question=question.text,
            gold=question.gold,
            options=question.options,
            frames=() if frames is None else filmstrip(frames, seconds),
        )


class Samples(Part):
    samples: tuple[Sample, ...] = ()


def write_samples(folder: Path, samples: Sequence[Sample]) -> Path:
    """Writes the run's samples.json, whole, in one step."""
    content = Samples(samples=tuple(samples)).model_dump_json(indent=1)
    return write_atomic(Path(folder) / SAMPLES, content)


def read_samples(folder: Path) -> tuple[Sample, ...]:
    """The run's samples; none when the file is not there; DataError when it is not one."""
    path = Path(folder) / SAMPLES
    if not path.exists():
        return ()
    try:
        return Samples.model_validate_json(path.read_bytes()).samples
    except ValidationError as error:
        raise DataError(
            f"{path} cannot be read: {error.errors()[0]['msg']}",
            fix="move the file away to do without examples",
        ) from error


def add_stage_samples(folder: Path, stage: str, responses: Mapping[str, SampleResponse]) -> None:
    """Adds one stage's responses by question id; done again (after a resume), replaces them.

    `stage` is `Stage.label`. A question that samples.json does not hold is a KeyError."""
    samples = read_samples(folder)
    unknown = set(responses) - {sample.id for sample in samples}
    if unknown:
        raise KeyError(f"not among the questions of {SAMPLES}: {', '.join(sorted(unknown))}")
    write_samples(folder, [_with_response(s, stage, responses.get(s.id)) for s in samples])


def _with_response(sample: Sample, stage: str, response: SampleResponse | None) -> Sample:
    if response is None:
        return sample
    return sample.model_copy(update={"responses": {**sample.responses, stage: response}})


def filmstrip(
    frames_THWC: np.ndarray, seconds: Sequence[float] | None = None, limit: int = FRAMES
) -> tuple[Frame, ...]:
    """At most `limit` frames of a clip [T, H, W, 3] uint8, evenly spread, as small images.

    Tiny clips become PNG, enlarged by a whole factor without smoothing; others JPEG, reduced.
    """
    count = len(frames_THWC)
    shown = min(limit, count)
    chosen = [(2 * place + 1) * count // (2 * shown) for place in range(shown)]
    return tuple(
        Frame(seconds=None if seconds is None else float(seconds[i]), image=_encode(frames_THWC[i]))
        for i in chosen
    )


def _encode(frame_HWC: np.ndarray) -> str:
    """The frame as a data: URI."""
    image = Image.fromarray(np.ascontiguousarray(frame_HWC, dtype=np.uint8))
    buffer = io.BytesIO()
    if image.height < TINY_HEIGHT:
        whole_factor = -(-FRAME_HEIGHT // image.height)
        _resized(image, whole_factor, Image.Resampling.NEAREST).save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        factor = min(1.0, FRAME_HEIGHT / image.height)
        _resized(image, factor, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=82)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _resized(image: Image.Image, factor: float, how: Image.Resampling) -> Image.Image:
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, how)
