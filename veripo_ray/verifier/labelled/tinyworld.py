"""Cases from the tiny world, labelled exactly: a chain's last word is what it concludes."""

from __future__ import annotations

from itertools import cycle
from random import Random

from veripo_ray.records import Kind
from veripo_ray.scoring import answers
from veripo_ray.tinyworld import chains, world
from veripo_ray.tinyworld.scene import Scene
from veripo_ray.tinyworld.vocabulary import TASKS
from veripo_ray.verifier.labelled.record import Labelled

_MIX = chains.Mix(
    full=0.7, shuffled=0.15, slip=0.7, loyal=0.75, reflective=0.1, repetitive=0.05
)  # slips and their loyal answers are about half


def cases(count: int = 400, seed: int = 0) -> tuple[Labelled, ...]:
    """`count` chains about as many scenes, a slip of the pen in about half; the same arguments give
    the same cases."""
    rng, scenes = Random(f"labelled {seed}"), world.scenes(seed, held_out=True)
    made = zip(range(count), scenes, cycle(TASKS), strict=False)
    return tuple(_case(f"tinyworld-{n:04d}", scene, task, rng) for n, scene, task in made)


def _case(id: str, scene: Scene, task: str, rng: Random) -> Labelled:
    asked = world.ask(scene, task, rng)
    parts = answers.split(chains.demonstrate(scene, asked, _MIX, rng))
    thinking, answer = parts.thinking_text.strip(), (parts.answer_text or "").strip()
    concluded = thinking.split()[-1]
    return Labelled(
        id=id,
        question=asked.text,
        kind=Kind.CHOICE if asked.options else Kind.NUMERIC,
        options=asked.options,
        thinking=thinking,
        answer=answer,
        consistent=concluded == answer,
        why=f"The chain ends in {concluded!r} and the answer is {answer!r}.",
    )
