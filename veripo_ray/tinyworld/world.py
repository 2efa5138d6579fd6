"""Scenes, questions about them, and the files in which a run finds both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random

from veripo_ray.questions import write_questions
from veripo_ray.records import Kind, Question
from veripo_ray.tinyworld import render
from veripo_ray.tinyworld.scene import Scene
from veripo_ray.tinyworld.vocabulary import COLOURS, LETTERS, SIDES, STEPS, TASKS

QUESTIONS_PER_CLIP = 2


@dataclass(frozen=True, slots=True)
class Ask:
    """One question: its task, the colour it names (count, after), its options (last, after)."""

    task: str
    colour: str = ""
    options: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(word for word in (self.task, self.colour, "?") if word)

    def truth(self, scene: Scene) -> str:
        """The number, or the colour, that is right."""
        match self.task:
            case "count":
                return str(scene.colours.count(self.colour))
            case "moves":
                return str(sum(a != b for a, b in zip(scene.sides, scene.sides[1:], strict=False)))
            case "last":
                return scene.colours[-1]
            case _:
                return scene.colours[scene.colours.index(self.colour) + 1]

    def gold(self, scene: Scene) -> str:
        truth = self.truth(scene)
        return LETTERS[self.options.index(truth)] if self.options else truth


def write_world(folder: Path, *, questions: int, heldout: int, seed: int) -> None:
    """Write clips/*.mp4, train.jsonl and heldout.jsonl (`records.Question`, one a line).

    Two questions share a clip. The same arguments give the same bytes; no clip of one file has
    the content of any other clip.
    """
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for name, count in (("train", questions), ("heldout", heldout)):
        few = -(-count // QUESTIONS_PER_CLIP)
        shown = list(islice(scenes(seed, held_out=name == "heldout"), few))
        videos = [f"clips/{name}-{number:05d}.mp4" for number in range(few)]
        render.write_clips([folder / video for video in videos], shown)
        rows = _questions(f"questions {name} {seed}", videos, shown)
        write_questions(folder / f"{name}.jsonl", islice(rows, count))


def scenes(seed: int, *, held_out: bool) -> Iterator[Scene]:
    """Endless, never the same content twice, all of one side of the split."""
    rng, seen = Random(f"scenes {held_out} {seed}"), set()
    while True:
        scene = _scene(rng)
        clear = _seen_once(scene.colours) and len(set(scene.sides)) > 1
        if clear and scene.held_out == held_out and scene.content not in seen:
            seen.add(scene.content)
            yield scene


def ask(scene: Scene, task: str, rng: Random) -> Ask:
    """A question of this task about this scene."""
    match task:
        case "count":
            return Ask(task, rng.choice(scene.colours))
        case "moves":
            return Ask(task)
        case "last":
            return Ask(task, options=_options(rng))
        case _:
            return Ask(task, rng.choice(_seen_once(scene.colours)), _options(rng))


def as_question(
    ask: Ask, gold: str, *, id: str, video: str | None, demonstration: str | None = None
) -> Question:
    return Question(
        id=id,
        text=ask.text,
        kind=Kind.CHOICE if ask.options else Kind.NUMERIC,
        gold=gold,
        options=ask.options,
        video=video,
        source=ask.task,
        demonstration=demonstration,
    )


def _questions(seed: str, videos: Sequence[str], shown: Sequence[Scene]) -> Iterator[Question]:
    """The questions of every clip; the tasks take turns."""
    rng, tasks = Random(seed), cycle(TASKS)
    for video, scene in zip(videos, shown, strict=True):
        for task in islice(tasks, QUESTIONS_PER_CLIP):
            asked = ask(scene, task, rng)
            id = f"{Path(video).stem}-{task}"
            yield as_question(asked, asked.gold(scene), id=id, video=video)


def _seen_once(colours: tuple[str, ...]) -> list[str]:
    """Colours of which it is clear what came after them."""
    return [c for c in COLOURS if colours.count(c) == 1 and c != colours[-1]]


def _scene(rng: Random) -> Scene:
    few = rng.sample(COLOURS, rng.choice((2, 3, 4)))
    restless = rng.uniform(0.15, 0.85)
    sides = [rng.choice(SIDES)]
    while len(sides) < STEPS:
        sides.append(_other(sides[-1]) if rng.random() < restless else sides[-1])
    return Scene(
        colours=tuple(rng.choice(few) for _ in range(STEPS)),
        sides=tuple(sides),
        shape=rng.choice(render.SHAPES),
        centre=(rng.randint(10, 17), rng.randint(8, 11)),
        radius=rng.randint(6, 8),
        shade=rng.randint(40, 120),
    )


def _other(side: str) -> str:
    return SIDES[1 - SIDES.index(side)]


def _options(rng: Random) -> tuple[str, ...]:
    return tuple(rng.sample(COLOURS, len(COLOURS)))
