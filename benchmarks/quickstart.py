"""The quickstart over several seeds: does the method do what it says, and how steady is it?

    python benchmarks/quickstart.py --seeds 3 --json results.json

Every seed is a whole run of the quickstart recipe (its own world, sampling and learning order) in a
fresh process. Prints mean and standard deviation over the seeds for every stage, and what the
stages are held to: grpo at least +0.10 accuracy over the start; dpo at most half of the
inconsistency before it, and not more than 0.03 of accuracy lost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import write

COLUMNS = ("accuracy", "inconsistency", "correct_and_consistent", "repetition", "format")
TIMEOUT_S = 1800


def main() -> None:
    args = _arguments()
    rows = [_run(seed, args.overrides) for seed in range(args.first, args.first + args.seeds)]
    _print(rows)
    write(args.json, "quickstart", rows, stages=_statistics(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value, as for `veripo train`")
    return parser.parse_args()


def _run(seed: int, overrides: list[str]) -> dict[str, Any]:
    """One run in a folder of its own; its summary, with the wall seconds of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "veripo_ray", "train", "quickstart"),
            *(f"seed={seed}", f"data.tinyworld.seed={seed}"),
            *(f"features.cache_dir={folder}/features", *overrides),  # empty for every seed
            *("--output", f"{folder}/run"),
        ]
        started = time.monotonic()
        subprocess.run(command, check=True, timeout=TIMEOUT_S, stdout=sys.stderr)
        seconds = time.monotonic() - started
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "stages": [_stage(stage) for stage in summary["stages"]],
        "seconds_per_sample": summary["seconds_per_sample"],
        "phase_switch_seconds": summary["phase_switch_seconds"],
        "decodes": summary["decodes"],
        "encodes": summary["encodes"],
        "videos": summary["videos"],
        **_gains(summary["stages"]),
    }


def _stage(stage: dict[str, Any]) -> dict[str, Any]:
    name = {"stage": f"{stage['phase']} {stage['iteration']}", "n": stage["n"]}
    keys = (*COLUMNS, "mean_think_tokens", "seconds", "samples", "pairs", "logprob_gap_max")
    return name | {key: stage[key] for key in keys}


def _gains(stages: list[dict[str, Any]]) -> dict[str, float]:
    initial, grpo, dpo = stages[:3]
    return {
        "grpo_accuracy_gain": grpo["accuracy"] - initial["accuracy"],
        "dpo_inconsistency_ratio": dpo["inconsistency"] / grpo["inconsistency"],
        "dpo_accuracy_change": dpo["accuracy"] - grpo["accuracy"],
    }


def _statistics(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, a row a stage."""
    result = []
    for stages in zip(*(row["stages"] for row in rows), strict=True):
        entry: dict[str, Any] = {"stage": stages[0]["stage"]}
        for column in COLUMNS:
            values = [stage[column] for stage in stages]
            entry[column] = {"mean": statistics.mean(values), "sd": _sd(values)}
        result.append(entry)
    return result


def _sd(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _print(rows: list[dict[str, Any]]) -> None:
    print(f"{len(rows)} seeds, mean ± standard deviation over seeds")
    print(f"{'stage':<12}" + "".join(f"{column:>24}" for column in COLUMNS))
    for stage in _statistics(rows):
        cells = (f"{stage[c]['mean']:.3f} ± {stage[c]['sd']:.3f}" for c in COLUMNS)
        print(f"{stage['stage']:<12}" + "".join(f"{cell:>24}" for cell in cells))
    print(f"{'seed':<6}{'seconds':>9}{'grpo gain':>11}{'dpo inc. ratio':>16}{'dpo acc.':>10}")
    for row in rows:
        print(
            f"{row['seed']:<6}{row['seconds']:>9.0f}{row['grpo_accuracy_gain']:>+11.3f}"
            f"{row['dpo_inconsistency_ratio']:>16.2f}{row['dpo_accuracy_change']:>+10.3f}"
        )


if __name__ == "__main__":
    main()
