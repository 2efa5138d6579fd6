"""Comparing sides (`_sides`) on one update: timed in turns, memory in fresh child processes.

Before anything is timed all sides must find the same log-probabilities.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _common
import torch
from _sides import Setting, Shape, Side, forget_models
from _trunk import TRUNKS, write_checkpoint

AGREE = {"float32": 1e-4, "bfloat16": 0.1}  # largest gap allowed between log-probabilities
CHILD_TIMEOUT_S = 1800


Builders = Mapping[str, Callable[[Setting], Side]]


def available(builders: Builders) -> tuple[Builders, list[str]]:
    """Sides whose library is installed, and the names of those that are absent."""
    needs = {"trl": "trl", "openrlhf": "openrlhf"}
    absent = [n for n in builders if n in needs and importlib.util.find_spec(needs[n]) is None]
    return {name: build for name, build in builders.items() if name not in absent}, absent


def arguments(
    about: str, shapes: Sequence[Shape], cuda_shapes: Sequence[Shape]
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, metavar="P,R,G")
    parser.add_argument("--repeats", type=int, help="rounds of every shape; see above")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--trunk", choices=list(TRUNKS), help="cpu, or 7b with --device cuda")
    parser.add_argument("--tokens", type=int, help="of a micro-batch; 20,000 with --device cuda")
    parser.add_argument("--threads", type=int, help="of torch; all cores if not given")
    parser.add_argument("--skip", nargs="*", default=[], help="sides to leave out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "SETTING"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.shapes = args.shapes or (cuda_shapes if args.device == "cuda" else shapes)
    return args


def main(
    name: str,
    args: argparse.Namespace,
    builders: Builders,
    repeats: Callable[[str, Shape], int],
    script: str,
) -> None:
    """Run a benchmark, or, as its child, measure one side's memory."""
    _quiet()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.child:
        side, fields = args.child[0], json.loads(args.child[1])
        setting = Setting(**fields | {"shape": Shape(**fields["shape"])})
        print(peak_mb(builders[side](setting)))
        return
    cuda = args.device == "cuda"
    trunk = args.trunk or ("7b" if cuda else "cpu")
    dtype = "bfloat16" if cuda else "float32"
    tokens = args.tokens or (20_000 if cuda else None)
    found, absent = available({n: b for n, b in builders.items() if n not in args.skip})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), trunk, getattr(torch, dtype), args.device)
        _release(cuda)
        _print_head(name, trunk, found, absent)
        for shape in args.shapes:
            setting = Setting(folder, shape, args.device, dtype, tokens)
            counts = {side: args.repeats or repeats(side, shape) for side in found}
            row = measure(setting, found, counts)
            row["peak_mb"] = {
                side: _in_child(script, side, setting, args.threads) for side in found
            }
            rows.append(row)
            _print_row(row, found)
            more = {"trunk": trunk, "dtype": dtype, "absent": absent, "skipped": args.skip}
            _common.write(args.json, name, rows, **more, threads=torch.get_num_threads())


def measure(setting: Setting, builders: Builders, repeats: Mapping[str, int]) -> dict[str, Any]:
    """Seconds and ratios of one shape."""
    sides = {name: build(setting) for name, build in builders.items()}
    gap = agreement(sides, AGREE[setting.dtype])
    finish = torch.cuda.synchronize if setting.device == "cuda" else lambda: None
    turns = _common.alternate({n: side.update for n, side in sides.items()}, repeats, finish)
    others = [name for name in sides if name != "ours"]
    wall = {n: _common.Spread.of(_common.ratios(turns[n], turns["ours"])) for n in others}
    cpu = {n: _common.Spread.of(_common.ratios(turns[n], turns["ours"], "cpu")) for n in others}
    limit = setting.shape.limit
    del sides
    _release(setting.device == "cuda")
    return {
        **asdict(setting.shape),
        "seconds": {n: round(_common.median(t), 4) for n, t in turns.items()},
        "cpu_seconds": {n: round(_common.median(t, "cpu"), 4) for n, t in turns.items()},
        "ratio": {n: round(spread.mean, 3) for n, spread in wall.items()},
        "ratio_sd": {n: round(spread.sd, 3) for n, spread in wall.items()},
        "ratio_cpu": {n: round(spread.mean, 3) for n, spread in cpu.items()},
        "rounds": dict(repeats),
        "limit": round(limit, 3),
        "over_limit": round(wall["repeated"].mean / limit, 3),
        "logprob_gap": gap,
    }


def agreement(sides: Mapping[str, Side], allowed: float) -> float:
    """Largest difference of any side's log-probabilities from ours. Exits when it is too large."""
    scored = {name: side.logprobs().float() for name, side in sides.items()}
    gaps = {name: float((rows - scored["ours"]).abs().max()) for name, rows in scored.items()}
    for name, gap in gaps.items():
        if not gap <= allowed:
            sys.exit(f"{name} finds log-probabilities that differ by {gap:.2g} from ours")
    return max(gaps.values())


def peak_mb(side: Side) -> float:
    """Peak memory of one update above the loaded model and its optimiser's state, in MB."""
    for parameter in side.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    side.optimizer.step()  # makes its state
    side.optimizer.zero_grad()
    if side.setting.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side.update()
        return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on (proc(5))
    before = _status_mb("VmRSS")
    side.update()
    return round(_status_mb("VmHWM") - before, 1)


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / 1e6


def _in_child(script: str, side: str, setting: Setting, threads: int | None) -> float:
    fields = json.dumps(asdict(setting))
    command = [sys.executable, script, "--child", side, fields]
    command += ["--threads", str(threads)] if threads else []
    result = subprocess.run(
        command, check=True, timeout=CHILD_TIMEOUT_S, stdout=subprocess.PIPE, text=True
    )
    return float(result.stdout.split()[-1])


def _quiet() -> None:
    """No progress bars, and no warnings of others about each other's versions."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="trl")


def _release(cuda: bool) -> None:
    """Free what this process holds of the device: the children need it."""
    forget_models()
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()


def _print_head(name: str, trunk: str, found: Builders, absent: list[str]) -> None:
    print(f"{name}: {trunk} trunk on {_common.device_name()}, {torch.get_num_threads()} threads")
    print("seconds: median; ratio: mean ± standard deviation of paired rounds, to ours")
    if absent:
        print(f"absent here: {', '.join(absent)}")
    columns = "".join(f"{side + ' s':>14}{'MB':>8}" for side in found)
    columns += "".join(f"{side + ' ratio':>18}" for side in found if side != "ours")
    print(f"{'P':>6}{'R':>5}{'G':>3}{columns}{'limit':>8}{'of limit':>10}", flush=True)


def _print_row(row: Mapping[str, Any], found: Builders) -> None:
    cells = "".join(f"{row['seconds'][n]:>14.3f}{row['peak_mb'][n]:>8.0f}" for n in found)
    for name, ratio in row["ratio"].items():
        spread = f"{ratio:.2f} ± {row['ratio_sd'][name]:.2f}"
        cells += f"{spread:>18}"
    shape = f"{row['P']:>6}{row['R']:>5}{row['G']:>3}"
    print(f"{shape}{cells}{row['limit']:>8.2f}{row['over_limit']:>10.3f}", flush=True)
