"""What the benchmarks share: their file of figures, and timing of sides that take turns."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any


def write(path: Path | None, name: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Write `{"benchmark", "date", "device", "rows"}`, and `more` beside; None writes nothing."""
    if path is None:
        return
    result = {
        "benchmark": name,
        "date": date.today().isoformat(),
        "device": device_name(),
        "rows": list(rows),
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def device_name() -> str:
    """The GPU, or the number of cores and what they are."""
    with suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores, {_processor()}, no GPU"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


@dataclass(frozen=True)
class Timing:
    """Seconds of one turn: on the wall, and of CPU over all threads of this process."""

    wall: float
    cpu: float


def alternate(
    sides: Mapping[str, Callable[[], Any]],
    repeats: Mapping[str, int],
    finish: Callable[[], Any] = lambda: None,
) -> dict[str, list[Timing]]:
    """Let the sides take turns in this process, each one untimed turn first.

    repeats: turns of each side; one with fewer sits out the last rounds. finish waits for a device.
    Returns the turns of each side; those of one index were one round.
    """
    for side in sides.values():
        side()
    turns: dict[str, list[Timing]] = {name: [] for name in sides}
    for round_number in range(max(repeats.values())):
        for name, side in sides.items():
            if round_number < repeats[name]:
                turns[name].append(_timed(side, finish))
    return turns


def _timed(side: Callable[[], Any], finish: Callable[[], Any]) -> Timing:
    finish()
    wall, cpu = time.perf_counter(), time.process_time()
    side()
    finish()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


@dataclass(frozen=True)
class Spread:
    """A mean, and the standard deviation around it (0 for a single value)."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def ratios(turns: Sequence[Timing], to: Sequence[Timing], clock: str = "wall") -> list[float]:
    """turns / to, round by round, where both have one."""
    return [
        getattr(turn, clock) / getattr(other, clock) for turn, other in zip(turns, to, strict=False)
    ]


def median(turns: Sequence[Timing], clock: str = "wall") -> float:
    return statistics.median(getattr(turn, clock) for turn in turns)
