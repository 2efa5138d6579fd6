"""The questions of a run: every row of its files checked and packed into its folder, once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from veripo_ray import config
from veripo_ray.errors import DataError
from veripo_ray.questions import LeftOut, QuestionTable, iter_questions
from veripo_ray.records import Question
from veripo_ray.runlog import BadItem, write_atomic

FOLDER = "questions"
LEFT_OUT = "left_out.json"


@dataclass(frozen=True, slots=True)
class Questions:
    """What there is to train on and to be held out, and the rows that cannot be used."""

    train: QuestionTable
    heldout: QuestionTable
    left_out: LeftOut


def pack(run: config.Run, output: Path) -> Questions:
    """Read and check the run's files row by row, and write what can be used into `output`. One
    question at a time is in memory. Those of the tiny world are written first."""
    folder, left_out = output / FOLDER, LeftOut()
    train, heldout = (
        QuestionTable.write(folder / part, _usable(run, output, part, left_out))
        for part in ("train", "heldout")
    )
    write_atomic(folder / LEFT_OUT, left_out.model_dump_json(indent=1))
    return Questions(train, heldout, left_out)


def unpack(output: Path) -> Questions:
    """The questions that `pack` wrote when the run began: a resumed run asks the same, by row."""
    folder = output / FOLDER
    try:
        left_out = LeftOut.model_validate_json((folder / LEFT_OUT).read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"the questions of the run cannot be read: {folder / LEFT_OUT}: {error}",
            fix="restore this folder from a copy, or start a new run in another --output",
        ) from error
    return Questions(QuestionTable(folder / "train"), QuestionTable(folder / "heldout"), left_out)


def _usable(run: config.Run, output: Path, part: str, left_out: LeftOut) -> Iterator[Question]:
    path = getattr(run.data, part)
    if run.data.tinyworld:
        path = _tiny_world(run.data.tinyworld, output / "data") / f"{part}.jsonl"
    for item in iter_questions(path, run.data.format, run.data.video_root):
        if isinstance(item, Question):
            yield item
        else:
            left_out.add(BadItem(name=item.id or item.where, reason=item.reason))


def _tiny_world(world: config.TinyWorldData, folder: Path) -> Path:
    """The folder of the tiny world, written on first use."""
    from veripo_ray.tinyworld.world import write_world

    if not (folder / "heldout.jsonl").exists():
        write_world(folder, questions=world.train, heldout=world.heldout, seed=world.seed)
    return folder
