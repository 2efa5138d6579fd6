"""What leading a run costs: the coordinator's CPU time for a group, from 2 to 256 rollout workers.

    python benchmarks/coordinator.py --json coordinator.json

Whole runs of a grpo phase and the dpo on its pairs, with the product's driver, coordinator, feed,
dealing, journals and verifier (rules, over HTTP), and engines that answer at once: see _fakes.py. A
group is eight rollouts of 200 tokens. `ms_per_group` is all CPU time of the coordinator's process,
its threads included, over the groups of all rollout batches but the first: it draws questions, has
their clips encoded, deals them, collects groups, rewards, journals and submits them to the
verifier, hands them to the learner, and publishes weights: `of_it_sync_ms`, three calls to every
worker a batch. `wall_ms_per_group` is what passes on the clock, with workers, learner and verifier
on the same cores.

Workers hand over what they finish within a tenth of a second together, as the product's do; with
--singly every group comes by itself, as they do from engines that take longer.

`phase_switch_s`: from the last grpo step to the first batch of verified pairs with reference
scores, evaluation left out, as a run's summary says; a weight sync of these engines takes no time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
from _common import write
from _fakes import COSTS, SINGLY, FakeTeam
from _synthetic import write_questions

from cluster import launch, preflight
from veripo_ray import recipe
from veripo_ray.runlog import read_summary

WORKERS = (2, 8, 32, 128, 256)
BATCH, BATCHES, HELDOUT = 1024, 4, 16
TIMEOUT_S = 1200
RUN = """
model: tinyworld
device: cpu
prompt: {template: tinyworld}
rollout: {group_size: 8, max_tokens: 256, max_model_len: 512, dtype: float32}
learner: {dtype: float32}
verifier: {checks: {min_think_tokens: 2, repetition_ngram: 6}}
pairs: {per_question: 1, reflective_turn: wait}
evaluation: {max_tokens: 256}
checkpoint_every: 1000
"""


def main() -> None:
    args = _arguments()
    if args.run:
        _lead(args.run)
        return
    ray.init(
        address="local",
        num_cpus=2 * max(args.workers) + 16,  # logical ones: nobody computes much
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    rows = [_row(workers, args.singly) for workers in args.workers]
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    write(args.json, "coordinator", rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--singly", action="store_true", help="every group comes by itself")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # the folder of one run
    return parser.parse_args()


def _row(workers: int, singly: bool) -> dict[str, Any]:
    """One run, led by a process of its own on this process's cluster."""
    with tempfile.TemporaryDirectory(prefix="veripo-coordinator-") as name:
        folder = Path(name)
        write_questions(folder / "train.jsonl", BATCH * BATCHES, "train")
        write_questions(folder / "heldout.jsonl", HELDOUT, "heldout")
        batch = f"rollout_batch: {BATCH}, train_batch: {BATCH}"
        schedule = f"schedule: [{{phase: grpo, {batch}}}, {{phase: dpo, batch_pairs: 256}}]\n"
        many = f"rollout: {{group_size: 8, workers: {workers}, "
        text = RUN.replace("rollout: {group_size: 8, ", many) + schedule
        (folder / "recipe.yaml").write_text(text)
        if singly:
            (folder / SINGLY).touch()
        subprocess.run(
            [sys.executable, __file__, "--run", str(folder)],
            check=True,
            timeout=TIMEOUT_S,
            stdout=sys.stderr,
            env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        )
        lines = (folder / "run" / COSTS).read_text().splitlines()
        summary = read_summary(folder / "run")
    syncs = [json.loads(line) for line in lines][:BATCHES]  # the last one is that of dpo
    cpu_s, wall_s, _ = (last - first for first, last in zip(syncs[0], syncs[-1], strict=True))
    sync_s = sum(seconds for _, _, seconds in syncs[1:])
    groups = BATCH * (len(syncs) - 1)
    assert summary is not None
    assert summary.phase_switch_seconds is not None
    return {
        "workers": workers,
        "singly": singly,
        "ms_per_group": round(cpu_s / groups * 1000, 3),
        "of_it_sync_ms": round(sync_s / groups * 1000, 3),
        "wall_ms_per_group": round(wall_s / groups * 1000, 3),
        "phase_switch_s": round(summary.phase_switch_seconds, 2),
        "groups": groups,
    }


def _lead(folder: Path) -> None:
    files = [f"data.{part}={folder / part}.jsonl" for part in ("train", "heldout")]
    run = recipe.load(folder / "recipe.yaml", [*files, f"output={folder / 'run'}"])
    prepared = preflight.prepare(run)
    assert launch.follow_to_the_end(prepared, resume=False, team=FakeTeam) == 0


if __name__ == "__main__":
    main()
