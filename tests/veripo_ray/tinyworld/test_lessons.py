"""Demonstrations: words of the vocabulary, conclusions and answers that are what they claim."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

from veripo_ray.questions import load_questions
from veripo_ray.tinyworld import chains, world
from veripo_ray.tinyworld.chains import Mix, demonstrate
from veripo_ray.tinyworld.lessons import write_lesson
from veripo_ray.tinyworld.scene import Scene
from veripo_ray.tinyworld.vocabulary import TASKS, WORDS
from veripo_ray.tinyworld.world import Ask


def examples(mix: Mix, count: int = 60) -> list[tuple[Scene, Ask, str]]:
    rng = Random(0)
    pairs = [
        (scene, world.ask(scene, task, rng))
        for scene in islice(world.scenes(9, held_out=False), count)
        for task in TASKS
    ]
    return [(scene, asked, demonstrate(scene, asked, mix, rng)) for scene, asked in pairs]


def parts(text: str) -> tuple[list[str], str]:
    """The words of the thinking, and the answer."""
    thinking, answer = text.removeprefix("<think> ").split(" </think> <answer> ")
    return thinking.split(), answer.removesuffix(" </answer>")


def test_every_word_is_in_the_vocabulary() -> None:
    for _, asked, text in examples(chains.NOISY):
        assert set(text.split()) <= set(WORDS)
        assert set(asked.text.split()) <= set(WORDS)


def test_clean_chains_are_right_and_conclude_what_they_answer() -> None:
    for scene, asked, text in examples(chains.CLEAN):
        thinking, answer = parts(text)
        assert answer == asked.gold(scene)
        assert thinking[-1] == answer
        assert thinking.count("so") == 1


def test_slips_contradict_the_conclusion_and_leave_the_answer_right() -> None:
    for scene, asked, text in examples(Mix(slip=1.0)):
        thinking, answer = parts(text)
        assert answer == asked.gold(scene)
        assert thinking[-1] != answer


def test_a_disloyal_answer_follows_the_slip() -> None:
    for scene, asked, text in examples(Mix(slip=1.0, loyal=0.0)):
        thinking, answer = parts(text)
        assert thinking[-1] == answer != asked.gold(scene)


def test_short_chains_stop_after_a_few_frames() -> None:
    for _, _, text in examples(Mix(full=0.0)):
        thinking, _ = parts(text)
        frames = [word for word in thinking if word.startswith("f")]
        assert frames == [f"f{k}" for k in range(1, len(frames) + 1)]
        assert 2 <= len(frames) <= 4


def test_reflective_chains_look_again_and_mend_a_hasty_answer() -> None:
    for scene, asked, text in examples(Mix(reflective=1.0)):
        thinking, answer = parts(text)
        assert thinking[0] == "so"
        assert thinking[1] != asked.gold(scene) == answer == thinking[-1]
        assert thinking[2] == "wait"


def test_repetitive_chains_say_their_beginning_again() -> None:
    for _, asked, text in examples(Mix(repetitive=1.0)):
        thinking, _ = parts(text)
        assert thinking.count("f1") >= 3
        assert asked.text


def test_the_drill_pairs_every_colour_with_its_letter() -> None:
    rng = Random(1)
    for _ in range(20):
        asked, text = chains.drill(rng)
        words = text.split()
        for so, colour, letter in zip(words[::3], words[1::3], words[2::3], strict=True):
            assert so == "so"
            assert asked.options["ABCD".index(letter)] == colour


def test_a_lesson_is_a_file_of_usable_questions_and_deterministic(tmp_path: Path) -> None:
    files = [
        write_lesson(tmp_path / name, "noisy", demonstrations=30, clips=3, seed=1) for name in "ab"
    ]
    questions, bad = load_questions(files[0])
    assert not bad
    assert len(questions) == 30
    assert all(question.demonstration for question in questions)
    assert len({question.video for question in questions}) == 3
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_letters_lesson_needs_no_clips(tmp_path: Path) -> None:
    file = write_lesson(tmp_path, "letters", demonstrations=5, clips=1, seed=1)
    questions, bad = load_questions(file)
    assert not bad
    assert [question.video for question in questions] == [None] * 5
