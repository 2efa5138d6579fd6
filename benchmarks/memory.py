"""What a run's processes hold while 1,000, 10,000 and 100,000 questions flow through.

    python benchmarks/memory.py --json memory.json

A whole run at each size in a fresh process, a grpo phase that learns from every question and the
dpo on the pairs of a tenth of them: the product's driver, coordinator, feed, verifier over HTTP,
journals, pairs, learner rank and reference. Two actors are synthetic (see _synthetic.py), the
policy is the tiny one. The log-probabilities of such rollouts are no policy's, so the limit of
their gap is set out of the way, and so is what the policy learns.

Figures are unique set sizes (USS: resident pages that no other process shares), since the resident
size of a process counts the pages of the object store that it has mapped. Sampled every other
second; peaks, and what was held at the last sample. The object store's figure is what it says is
in use. CPU seconds are those of the whole life of a process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from _common import write
from _synthetic import SyntheticTeam, write_questions

from cluster import launch, preflight
from veripo_ray import recipe
from veripo_ray.policy.qwen_vl import read_spec
from veripo_ray.runlog import read_summary

SIZES = (1000, 10_000, 100_000)
HELDOUT = 64
PROCESSES = {"coordinator": "ray::Coordinator", "learner": "ray::LearnerRank"}
NAMES = ("driver", *PROCESSES, "object_store")
TIMEOUT_S = 1800
EVERY_S = 2.0
RUN = """
model: tinyworld
device: cpu
prompt: {template: tinyworld}
rollout: {group_size: 2, max_tokens: 64, max_model_len: 256, dtype: float32}
learner: {dtype: float32, micro_batch_tokens: 8192}
verifier: {checks: {min_think_tokens: 2, repetition_ngram: 6}}
pairs: {per_question: 1, reflective_turn: wait}
evaluation: {max_tokens: 64}
max_logprob_gap: 1.0e+3
checkpoint_every: 20
grpo: {rollout_batch: 250, train_batch: 250, lr: 1.0e-6}
dpo: {batch_pairs: 250, shard_pairs: 250, lr: 1.0e-6}
schedule: [grpo, dpo]
"""


def main() -> None:
    args = _arguments()
    if args.run:
        args.json.write_text(json.dumps(_measure(args.run)))
        return
    rows = [_in_a_fresh_process(count) for count in args.questions]
    _print(rows)
    write(args.json, "memory", rows, growth_mb=_growth(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # the folder of one size
    return parser.parse_args()


def _in_a_fresh_process(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="veripo-memory-") as name:
        folder, result = Path(name), Path(name, "result.json")
        write_questions(folder / "train.jsonl", count, "train")
        write_questions(folder / "heldout.jsonl", HELDOUT, "heldout")
        (folder / "recipe.yaml").write_text(RUN)
        command = [sys.executable, __file__, "--run", str(folder), "--json", str(result)]
        subprocess.run(command, check=True, timeout=TIMEOUT_S, stdout=sys.stderr)
        return {"questions": count, **json.loads(result.read_text())}


def _measure(folder: Path) -> dict[str, Any]:
    """One run, from its files to its end, led by this process."""
    files = [f"data.{part}={folder / part}.jsonl" for part in ("train", "heldout")]
    run = recipe.load(folder / "recipe.yaml", [*files, f"output={folder / 'run'}"])
    read_spec(preflight.model_folder(run.model))  # what it imports is not the questions' time
    with Watch() as watch:
        started = time.monotonic()
        prepared = preflight.prepare(run)
        load_seconds = time.monotonic() - started
        status = launch.follow_to_the_end(prepared, resume=False, team=SyntheticTeam)
        seconds = time.monotonic() - started
    summary = read_summary(run.output)
    assert status == 0
    assert summary is not None
    figures = {f"{name}_mb": round(watch.peak[name], 1) for name in NAMES}
    figures |= {f"{name}_end_mb": round(watch.last[name], 1) for name in NAMES}
    return figures | {
        "cpu_seconds": {name: round(used, 1) for name, used in watch.cpu_seconds.items()},
        "seconds": round(seconds, 1),
        "load_seconds": round(load_seconds, 2),
        "trained_rollouts": summary.stages[1].samples,
        "trained_pairs": summary.stages[2].samples,
    }


class Watch:
    """A thread that looks at this process, those of the run, and the object store."""

    def __init__(self) -> None:
        self.peak, self.last = dict.fromkeys(NAMES, 0.0), dict.fromkeys(NAMES, 0.0)
        self.cpu_seconds: dict[str, float] = {}
        self._found: dict[str, psutil.Process] = {"driver": psutil.Process()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            for name, megabytes in self._look().items():
                self.last[name] = megabytes
                self.peak[name] = max(self.peak[name], megabytes)

    def _look(self) -> dict[str, float]:
        if missing := PROCESSES.keys() - self._found.keys():
            self._found |= _processes({name: PROCESSES[name] for name in missing})
        seen = {}
        for name, process in self._found.items():
            with suppress(psutil.Error):
                used = process.memory_full_info().uss / 1e6
                if used:  # an actor that was ended leaves an empty process behind for a while
                    seen[name] = used
                    self.cpu_seconds[name] = sum(process.cpu_times()[:2])
        if "coordinator" in seen:
            seen["object_store"] = _object_store_bytes() / 1e6
        return seen


def _processes(wanted: Mapping[str, str]) -> dict[str, psutil.Process]:
    """Ray names a worker's process after its actor."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            title = process.cmdline()[:1]
            for name, beginning in wanted.items():
                if title and title[0].startswith(beginning):
                    found[name] = process
    return found


def _object_store_bytes() -> int:
    """What `ray memory` prints, which has no public call."""
    from ray._private.internal_api import node_stats

    (node,) = (node for node in ray.nodes() if node["Alive"])
    address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
    stats = node_stats(address, port, include_memory_info=False)
    return int(stats.store_stats.object_store_bytes_used)


def _growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of the peaks, from the smallest run to the largest."""
    first = min(rows, key=lambda row: row["questions"])
    last = max(rows, key=lambda row: row["questions"])
    return {name: round(last[f"{name}_mb"] - first[f"{name}_mb"], 1) for name in NAMES}


def _print(rows: list[dict[str, Any]]) -> None:
    print("MB, peak / at the end (unique set size; the object store: bytes in use)")
    print(f"{'questions':>10}" + "".join(f"{name:>20}" for name in NAMES) + f"{'seconds':>10}")
    for row in rows:
        cells = (f"{row[f'{name}_mb']:.0f} / {row[f'{name}_end_mb']:.0f}" for name in NAMES)
        figures = "".join(f"{cell:>20}" for cell in cells)
        print(f"{row['questions']:>10}{figures}{row['seconds']:>10.0f}")
    growth = ", ".join(f"{name} {change:+.0f}" for name, change in _growth(rows).items())
    print(f"growth of the peaks from {rows[0]['questions']} to {rows[-1]['questions']}: {growth}")


if __name__ == "__main__":
    main()
