"""The tiny world: the same bytes from the same arguments, no leak, true answers."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest

from veripo_ray.config import Video
from veripo_ray.questions import load_questions
from veripo_ray.records import Kind
from veripo_ray.tinyworld import render, world
from veripo_ray.tinyworld.scene import Scene
from veripo_ray.tinyworld.vocabulary import LETTERS, STEPS, TASKS
from veripo_ray.tinyworld.world import Ask, write_world
from veripo_ray.video.decode import Decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, questions=40, heldout=21, seed=3)
    return folder


def scene(colours: str, sides: str) -> Scene:
    names = {"r": "red", "g": "green", "b": "blue", "y": "yellow", "<": "left", ">": "right"}
    return Scene(
        tuple(names[c] for c in colours), tuple(names[s] for s in sides), "disc", (14, 10), 7, 80
    )


def test_the_same_arguments_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_world(tmp_path, questions=40, heldout=21, seed=3)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(files) == 2 + 20 + 11
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_another_seed_gives_other_questions(folder: Path, tmp_path: Path) -> None:
    write_world(tmp_path, questions=4, heldout=2, seed=4)
    first = (folder / "train.jsonl").read_text().splitlines()[:4]
    assert first != (tmp_path / "train.jsonl").read_text().splitlines()


def test_every_question_is_usable_and_the_tasks_take_turns(folder: Path) -> None:
    for name, count in (("train", 40), ("heldout", 21)):
        questions, bad = load_questions(folder / f"{name}.jsonl")
        assert not bad
        assert len(questions) == count
        assert [q.source for q in questions] == [TASKS[i % 4] for i in range(count)]
        assert len({q.video for q in questions}) == -(-count // world.QUESTIONS_PER_CLIP)


def test_video_paths_are_relative_to_the_file(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "train.jsonl").open()]
    assert all(not Path(row["video"]).is_absolute() for row in rows)


def test_no_clip_is_shared_between_training_and_held_out_at_any_seeds() -> None:
    kept = {s.content for seed in range(3) for s in islice(world.scenes(seed, held_out=True), 300)}
    used = {s.content for seed in range(3) for s in islice(world.scenes(seed, held_out=False), 900)}
    assert not kept & used


def test_no_two_clips_of_a_seed_have_the_same_content() -> None:
    contents = [s.content for s in islice(world.scenes(0, held_out=False), 1500)]
    assert len(set(contents)) == len(contents)


@pytest.mark.parametrize(
    ("asked", "truth", "gold"),
    [
        (Ask("count", "red"), "3", "3"),
        (Ask("moves"), "4", "4"),
        (Ask("last", options=("red", "blue", "green", "yellow")), "blue", "B"),
        (Ask("after", "green", ("blue", "green", "red", "yellow")), "red", "C"),
    ],
)
def test_the_truth_of_each_task(asked: Ask, truth: str, gold: str) -> None:
    shown = scene("rbbgrbrb", "<<><>>><")
    assert asked.truth(shown) == truth
    assert asked.gold(shown) == gold


def test_questions_have_one_clear_answer() -> None:
    rng = Random(0)
    for shown in islice(world.scenes(1, held_out=False), 200):
        for task in TASKS:
            asked = world.ask(shown, task, rng)
            question = world.as_question(asked, asked.gold(shown), id="q", video=None)
            if question.kind is Kind.NUMERIC:
                assert 1 <= int(question.gold) <= STEPS
            else:
                assert asked.options[LETTERS.index(question.gold)] == asked.truth(shown)
            if task == "after":
                assert shown.colours.count(asked.colour) == 1


def test_a_run_sees_every_step_of_a_clip_through_decord(tmp_path: Path) -> None:
    shown = next(world.scenes(0, held_out=False))
    render.write_mp4(tmp_path / "clip.mp4", shown)
    with Decoder(Video(fps=2.0, min_pixels=784)) as decoder:
        clip = decoder.clip(tmp_path / "clip.mp4")
    assert clip.frames.shape == (2 * STEPS, 28, 56, 3)
    assert clip.fps == pytest.approx(2.0)
    wanted = np.repeat(render.frames(shown), 2, axis=0).astype(int)
    difference = np.abs(clip.frames.astype(int) - wanted).mean(axis=(1, 2, 3))
    assert 0 < difference.max() < 12  # the codec's noise, never another step


def test_a_frame_shows_its_colour_on_its_side_and_its_step() -> None:
    shown = scene("rgbyrgby", "<><><><>")
    pictures = render.frames(shown)
    for step, (colour, side) in enumerate(zip(shown.colours, shown.sides, strict=True)):
        half = slice(0, 28) if side == "left" else slice(28, 56)
        assert tuple(pictures[step, 10, half][14]) == render.RGB[colour]
        row, column = divmod(step, 4)
        cell = pictures[step, 20 + 4 * row + 1, 7 * column + 3]
        assert tuple(cell) == (240, 240, 240)
