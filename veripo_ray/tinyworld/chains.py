"""Demonstrations in the tiny world's controlled language: what the cold start imitates.

A chain looks at frames one by one, `f1 red 1 f2 blue 1`, keeping a running tally where the
question needs one, and concludes with `so 3` or `so red B`. Besides clean chains there are the
faults that the method is to mend: chains that stop after a few frames, conclusions that slip
while the answer does not, repetition; and chains that look twice, `so A wait ...`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from veripo_ray.tinyworld.scene import Scene
from veripo_ray.tinyworld.vocabulary import COLOURS, FRAMES, LETTERS, STEPS
from veripo_ray.tinyworld.world import Ask

WHOLE = tuple(range(STEPS))


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of each kind of demonstration; the rest of `full` are short chains.

    slip: of all chains, those whose written conclusion is wrong. loyal: of the slips, those whose
    answer follows the frames all the same.
    """

    full: float = 1.0
    shuffled: float = 0.0
    slip: float = 0.0
    loyal: float = 1.0
    reflective: float = 0.0
    repetitive: float = 0.0


CLEAN = Mix(shuffled=0.15)
SLIPPING = Mix(shuffled=0.1, slip=0.4)  # the answer comes from the chain, whatever was concluded
NOISY = Mix(full=0.2, slip=0.4, reflective=0.08, repetitive=0.03)


def demonstrate(scene: Scene, asked: Ask, mix: Mix, rng: Random) -> str:
    """A whole response, `<think> ... </think> <answer> ... </answer>`."""
    if rng.random() < mix.reflective:
        return _respond(_reflective(scene, asked, rng), asked.gold(scene))
    if rng.random() < mix.repetitive:
        return _respond(_repetitive(scene, asked, rng), asked.gold(scene))
    seen = _glance(asked, mix, rng)
    found = _conclude(scene, asked, seen, rng)
    right = _short(asked, found)
    written = _slipped(asked, right, rng) if rng.random() < mix.slip else right
    answer = right if rng.random() < mix.loyal else written
    return _respond([*_look(scene, asked, seen), *_so(asked, found, written)], answer)


def drill(rng: Random) -> tuple[Ask, str]:
    """The option lookup alone: a choice question without a clip, every colour with its letter."""
    asked = Ask("last", options=tuple(rng.sample(COLOURS, len(COLOURS))))
    colours = rng.choices(COLOURS, k=8)
    return asked, " ".join(word for colour in colours for word in _so(asked, colour))


def _glance(asked: Ask, mix: Mix, rng: Random) -> Sequence[int]:
    """Which frames a chain looks at."""
    if rng.random() >= mix.full:
        return WHOLE[: rng.randint(2, 4)]
    if asked.task in ("count", "last") and rng.random() < mix.shuffled:
        return rng.sample(WHOLE, STEPS)
    return WHOLE


def _look(scene: Scene, asked: Ask, seen: Sequence[int]) -> list[str]:
    """`f1 red 1 f2 blue 1` (count), `f1 left 0 f2 right 1` (moves), `f1 red f2 blue`."""
    chain, tally, side = [], 0, None
    for step in seen:
        chain.append(FRAMES[step])
        if asked.task == "moves":
            tally += side not in (None, scene.sides[step])
            side = scene.sides[step]
            chain += [side, str(tally)]
        else:
            tally += scene.colours[step] == asked.colour
            chain += [scene.colours[step]] + [str(tally)] * (asked.task == "count")
    return chain


def _conclude(scene: Scene, asked: Ask, seen: Sequence[int], rng: Random) -> str:
    """The number or colour that follows from the frames seen; a guess where nothing does."""
    if not asked.options:
        return _look(scene, asked, seen)[-1]
    if asked.task == "last":
        return scene.colours[max(seen)]
    spot = scene.colours.index(asked.colour)
    return asked.truth(scene) if {spot, spot + 1} <= set(seen) else rng.choice(COLOURS)


def _slipped(asked: Ask, right: str, rng: Random) -> str:
    """A slip of the pen: another letter, a neighbouring number."""
    if asked.options:
        return rng.choice([letter for letter in LETTERS if letter != right])
    near = [n for n in (int(right) - 1, int(right) + 1) if 0 <= n <= STEPS]
    return str(rng.choice(near))


def _reflective(scene: Scene, asked: Ask, rng: Random) -> list[str]:
    """A hasty conclusion, `wait`, and the whole chain."""
    hasty = _slipped(asked, asked.gold(scene), rng)
    chain = _look(scene, asked, WHOLE)
    return ["so", hasty, "wait", *chain, *_so(asked, asked.truth(scene))]


def _repetitive(scene: Scene, asked: Ask, rng: Random) -> list[str]:
    """The whole chain with its beginning said again and again."""
    chain = _look(scene, asked, WHOLE)
    again = chain[: 3 * rng.randint(2, 4)]
    return [*again * rng.randint(2, 3), *chain, *_so(asked, asked.truth(scene))]


def _so(asked: Ask, found: str, written: str | None = None) -> list[str]:
    """The conclusion: `so red B`, or `so 3`. written: what a slip puts instead of B or 3."""
    last = written or _short(asked, found)
    return ["so", found, last] if asked.options else ["so", last]


def _short(asked: Ask, found: str) -> str:
    """What the answer says: the option's letter, or the number itself."""
    return LETTERS[asked.options.index(found)] if asked.options else found


def _respond(thinking: Sequence[str], answer: str) -> str:
    return f"<think> {' '.join(thinking)} </think> <answer> {answer} </answer>"
