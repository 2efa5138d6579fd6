"""Files of demonstrations for the cold start: the lessons that make the shipped checkpoint.

Their order matters, after a tower that sees (`sight`). The language model first learns to find an
option's letter (without that drill the lookup may never come); clean chains then teach the tally;
slipping ones to answer by the chain whatever the conclusion says, so that rewards alone do not mend
the contradiction; noisy ones the other faults. Noisy ones alone never leave chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

from veripo_ray.questions import write_questions
from veripo_ray.records import Question
from veripo_ray.tinyworld import chains, render, world
from veripo_ray.tinyworld.vocabulary import TASKS

MIXES = {"clean": chains.CLEAN, "slipping": chains.SLIPPING, "noisy": chains.NOISY}
FILE = "demonstrations.jsonl"


def write_lesson(folder: Path, lesson: str, *, demonstrations: int, clips: int, seed: int) -> Path:
    """Write clips and a JSONL of questions with demonstrations about them; returns its path.

    lesson: "letters" (no clips), "clean", "slipping" or "noisy". The same arguments give the same
    bytes; no clip has the content of a held-out one.
    """
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rng = Random(f"lesson {lesson} {seed}")
    rows = _drills(rng) if lesson == "letters" else _about_clips(folder, lesson, clips, seed, rng)
    write_questions(folder / FILE, islice(rows, demonstrations))
    return folder / FILE


def _drills(rng: Random) -> Iterator[Question]:
    number = 0
    while True:
        asked, text = chains.drill(rng)
        yield world.as_question(
            asked, gold="A", id=f"letters-{number}", video=None, demonstration=text
        )
        number += 1


def _about_clips(
    folder: Path, lesson: str, clips: int, seed: int, rng: Random
) -> Iterator[Question]:
    scenes = list(islice(world.scenes(seed, held_out=False), clips))
    render.write_clips([folder / _video(place) for place in range(clips)], scenes)
    number = 0
    while True:
        place = rng.randrange(clips)
        asked = world.ask(scenes[place], rng.choice(TASKS), rng)
        yield world.as_question(
            asked,
            gold=asked.gold(scenes[place]),
            id=f"{lesson}-{number}",
            video=_video(place),
            demonstration=chains.demonstrate(scenes[place], asked, MIXES[lesson], rng),
        )
        number += 1


def _video(place: int) -> str:
    return f"clips/{place:05d}.mp4"
