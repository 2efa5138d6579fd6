"""How fast a response is checked on one core, without the judge.

    python benchmarks/checks.py --json checks.json

Rollouts a second through the whole chain of checks (the tags, format, accuracy, length in words,
repetition, reflection), by kind of text; and milliseconds on one megabyte of garbage: of the tags,
of repetition, and of the whole chain. Times are of the CPU, the median of several turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from _common import write

from veripo_ray import config
from veripo_ray.records import Kind
from veripo_ray.scoring import answers
from veripo_ray.tinyworld import chains, world
from veripo_ray.tinyworld.scene import Scene
from veripo_ray.verifier.checks import count_words
from veripo_ray.verifier.repetition import repetition
from veripo_ray.verifier.verify import Item, check_edited

ROLLOUTS, TURNS = 500, 9
MEGABYTE = 2**20
CHECKS = config.Checks()
_SUBJECTS = ("the red car", "a man in a grey coat", "the second dog", "a cyclist", "the camera")
_VERBS = ("passes behind", "turns towards", "stops near", "moves slowly past", "looks at")
_PLACES = ("the corner shop", "a parked truck", "the zebra crossing", "two trees", "the doorway")
_WHENS = ("at first", "in the next frames", "about two seconds later", "near the end", "then")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    path = parser.parse_args().json
    rates = [_rate(name, items) for name, items in _rollouts(Random(0)).items()]
    costs = [_cost(name, text) for name, text in _garbage(Random(0)).items()]
    _print(rates, costs)
    write(path, "checks", rates + costs)


def _rollouts(rng: Random) -> dict[str, list[Item]]:
    turning = "Wait, let me check that again. "
    return {
        "prose": [_prose(rng, "") for _ in range(ROLLOUTS)],
        "prose that reflects": [_prose(rng, turning) for _ in range(ROLLOUTS)],
        "prose in a loop": [_prose(rng, "", loop=12) for _ in range(ROLLOUTS)],
        "tiny world": _tiny(rng),
    }


def _prose(rng: Random, turn: str, loop: int = 0) -> Item:
    """A chain of 200 to 300 words about what a video shows."""
    said: list[str] = []
    target = rng.randint(200, 300)
    while sum(len(one.split()) for one in said) < target:
        if loop and len(said) >= loop:
            said.append(said[loop - 1])
            continue
        when, subject, verb, place = map(rng.choice, (_WHENS, _SUBJECTS, _VERBS, _PLACES))
        said.append(f"{when.capitalize()}, {subject} {verb} {place}, {rng.randint(1, 40)} s in.")
    said.insert(len(said) // 2, turn)
    text = f"<think>{' '.join(said)} So the answer is B.</think>\n<answer>B</answer>"
    return Item(question_id="q", kind=Kind.CHOICE, gold="B", response=text)


def _tiny(rng: Random) -> list[Item]:
    scenes = islice(world.scenes(0, held_out=False), ROLLOUTS // len(world.TASKS))
    return [_chain_about(scene, task, rng) for scene in scenes for task in world.TASKS]


def _chain_about(scene: Scene, task: str, rng: Random) -> Item:
    asked = world.ask(scene, task, rng)
    response = chains.demonstrate(scene, asked, chains.CLEAN, rng)
    question = world.as_question(asked, asked.gold(scene), id="q", video=None)
    return Item.of(question, response)


def _garbage(rng: Random) -> dict[str, str]:
    prose = " ".join(_prose(rng, "").response for _ in range(MEGABYTE // 1500 + 1))
    return {
        "one letter": "a" * MEGABYTE,
        "alternating words": "yes no " * (MEGABYTE // 7),
        "words that reflect": "wait " * (MEGABYTE // 5),
        "one mark": "!" * MEGABYTE,
        "random marks": "".join(rng.choices("!?", k=MEGABYTE)),
        "unclosed tags": "<think>" * (MEGABYTE // 7),
        "white space": " \n" * (MEGABYTE // 2),
        "random letters": "".join(rng.choices("ab ", k=MEGABYTE)),
        "random bytes": rng.randbytes(MEGABYTE)
        .decode("latin-1")
        .encode()[:MEGABYTE]
        .decode(errors="ignore"),
        "random Chinese": "".join(map(chr, rng.choices(range(0x4E00, 0x9FA5), k=MEGABYTE // 3))),
        "prose with tags": prose[:MEGABYTE],
    }


def _rate(name: str, items: Sequence[Item]) -> dict[str, Any]:
    seconds = _median(lambda: [_chain(item) for item in items])
    words = statistics.mean(count_words(item.response) for item in items)
    return {"text": name, "words": round(words), "rollouts_per_second": round(len(items) / seconds)}


def _cost(name: str, text: str) -> dict[str, Any]:
    item = Item(kind=Kind.CHOICE, gold="B", response=text)
    return {
        "garbage": name,
        "bytes": len(text.encode()),
        "tags_ms": round(1e3 * _median(lambda: answers.split(text)), 1),
        "repetition_ms": round(1e3 * _median(lambda: repetition(text)), 1),
        "all_checks_ms": round(1e3 * _median(lambda: _chain(item)), 1),
    }


def _chain(item: Item) -> object:
    return check_edited(item, CHECKS, count_words)  # all but the judge's


def _median(work: Callable[[], object]) -> float:
    """Seconds of CPU, after a turn that is not timed."""
    work()
    return statistics.median(_timed(work) for _ in range(TURNS))


def _timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _print(rates: Sequence[dict[str, Any]], costs: Sequence[dict[str, Any]]) -> None:
    print(f"{'rollouts':<22}{'words':>8}{'a second':>12}")
    for row in rates:
        print(f"{row['text']:<22}{row['words']:>8}{row['rollouts_per_second']:>12}")
    print(f"\n{'1 MB of':<22}{'tags ms':>8}{'repetition ms':>15}{'all checks ms':>15}")
    for row in costs:
        print(
            f"{row['garbage']:<22}{row['tags_ms']:>8}{row['repetition_ms']:>15}"
            f"{row['all_checks_ms']:>15}"
        )


if __name__ == "__main__":
    main()
