"""How often a video is decoded and goes through the vision tower in a whole iteration.

    python benchmarks/vision.py --json vision.json

Runs grpo, verification and dpo, with evaluations, on the tiny world (real mp4 files, real tower),
once with an empty disk cache and once more. Decodes and tower passes are counted from outside in
every process of the run (see _watch.py), and compared with the run's own counters.

Then the same media are made again as trainers do that re-encode: `per_consumer`, once a question
for each of sampling, learning, reference, dpo and evaluation, and `per_sequence`, for each rollout
and each side of a pair that one of these handles. The seconds are those of decoding and encoding
for the whole iteration, all by the same decoder and tower on the same machine, one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
from _common import write
from _watch import Watch

from veripo_ray import config, journal, recipe
from veripo_ray.features import FeatureSource
from veripo_ray.objectives.advantages import is_informative
from veripo_ray.records import Group, Question
from veripo_ray.runlog import Summary, read_summary

CHECKPOINT = Path(__file__).parents[1] / "veripo_ray" / "tinyworld" / "checkpoint"
SETTINGS = (
    "data.tinyworld={train: 64, heldout: 48}",
    "grpo={questions: 32, rollout_batch: 16, train_batch: 16, lr: 5.0e-4}",
    "schedule=[grpo, dpo]",
)
TIMEOUT_S = 1800


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = [_run(folder, name, args.overrides) for name in ("cold", "warm")]
        rows += _compared(folder)
    _print(rows)
    write(args.json, "vision", rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value, as for `veripo train`")
    return parser.parse_args()


# --- counted in the running system


def _run(folder: Path, name: str, overrides: list[str]) -> dict[str, Any]:
    """One whole run on the cache that the one before it has left."""
    watch, output = Watch(folder / f"watch-{name}"), folder / name
    cache = [f"features.cache_dir={folder / 'cache'}", f"verifier.port={_free_port()}"]
    command = [sys.executable, "-m", "veripo_ray", "train", "quickstart", *SETTINGS, *cache]
    started = time.monotonic()
    subprocess.run(
        [*command, *overrides, "--output", str(output)],
        check=True,
        timeout=TIMEOUT_S,
        stdout=sys.stderr,
        env=os.environ | watch.environment,
    )
    seconds = time.monotonic() - started
    summary = read_summary(output)
    assert summary is not None
    return {
        "name": name,
        "videos": summary.videos,
        "decodes_per_video": watch.decodes.total() / summary.videos,
        "encodes_per_video": watch.encodes / summary.videos,
        "most_decodes_of_a_video": max(watch.decodes.values(), default=0),
        "cache_hits_per_video": summary.feature_cache_hits / summary.videos,
        "counters_agree": _agree(summary, watch),
        "run_seconds": round(seconds, 1),
    }


def _agree(summary: Summary, watch: Watch) -> bool:
    """Whether the run's own counters say what was seen from outside."""
    return (summary.decodes, summary.encodes) == (watch.decodes.total(), watch.encodes)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the same media as others make them


def _compared(folder: Path) -> list[dict[str, Any]]:
    """Seconds of decoding and encoding for the iteration of the cold run, by each way."""
    run = recipe.load(folder / "cold" / "config.yaml")
    sequences: Counter[str] = Counter()
    consumers: Counter[str] = Counter()
    for _, video, count in _uses(folder / "cold", run):
        sequences[video] += count
        consumers[video] += 1
    once = Counter(dict.fromkeys(sequences, 1))
    fresh, none = folder / "compared", config.Features(cache_gb=0, decoders=1)
    kept = config.Features(cache_dir=fresh, decoders=1)
    ways = {
        "ours": (once, kept),
        "ours, cache warm": (once, kept),
        "per_consumer": (consumers, none),
        "per_sequence": (sequences, none),
    }
    return [_timed(name, uses, run.video, cfg) for name, (uses, cfg) in ways.items()]


def _uses(folder: Path, run: config.Run) -> Iterator[tuple[str, str, int]]:
    """(consumer, video, sequences that it handles) for every question that one asks for."""
    heldout = _videos(folder / "data" / "heldout.jsonl")
    for stage in range(1 + len(run.schedule)):
        yield from ((f"evaluation {stage}", video, 1) for video in heldout)
    for group in journal.read_groups(folder):
        yield from _of_group(group)
    dpo = next(phase for phase in run.schedule if isinstance(phase, config.DpoPhase))
    pairs = Counter(_video(pair.question) for pair in journal.read_pairs(folder))
    for consumer in ("reference", *(f"dpo epoch {n}" for n in range(dpo.epochs))):
        yield from ((consumer, video, 2 * count) for video, count in pairs.items())


def _of_group(group: Group) -> Iterator[tuple[str, str, int]]:
    video, count = _video(group.question), len(group.rollouts)
    yield "sampling", video, count
    if is_informative([reward.accuracy for reward in group.rewards]):
        yield "learning", video, count


def _videos(path: Path) -> list[str]:
    return [str(path.parent / json.loads(line)["video"]) for line in path.open()]


def _video(question: Question) -> str:
    assert question.video is not None
    return question.video


def _timed(
    name: str, uses: Counter[str], video: config.Video, cfg: config.Features
) -> dict[str, Any]:
    source = FeatureSource(CHECKPOINT, video, cfg)
    source.decoders.clip(next(iter(uses)))  # the decoder's process has started
    started, cpu = time.monotonic(), _cpu_seconds()
    for path in uses.elements():
        source.of(_asked(path))
    seconds, cpu = time.monotonic() - started, _cpu_seconds() - cpu
    counts = source.counts()
    source.close()
    return {
        "name": name,
        "videos": len(uses),
        "decodes_per_video": counts.decodes / len(uses),
        "encodes_per_video": counts.encodes / len(uses),
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
    }


def _asked(video: str) -> Question:
    return Question(id=video, text="?", kind="numeric", gold="1", video=video)


def _cpu_seconds() -> float:
    """Of this process and of the decoder that it has started."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    times = [process.cpu_times() for process in processes]
    return sum(time.user + time.system for time in times)


def _print(rows: Iterable[dict[str, Any]]) -> None:
    print(f"{'':<18}{'videos':>7}{'decodes':>9}{'encodes':>9}{'seconds':>9}{'CPU s':>8}")
    for row in rows:
        print(
            f"{row['name']:<18}{row['videos']:>7}{row['decodes_per_video']:>9.2f}"
            f"{row['encodes_per_video']:>9.2f}"
            f"{row.get('seconds', float('nan')):>9.2f}{row.get('cpu_seconds', float('nan')):>8.2f}"
        )
    print("decodes and encodes: per video")


if __name__ == "__main__":
    main()
