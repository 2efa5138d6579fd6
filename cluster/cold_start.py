"""The sft phases before the loop: each on Ray Train, its progress read from its metrics file."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.sft import METRICS, ask_to_stop, train_sft
from cluster.preflight import Prepared
from cluster.stopping import Stop
from veripo_ray.attempt import Attempt
from veripo_ray.progress import Progress, Status
from veripo_ray.progress.written import write_status

POLL_S = 0.5


def cold_start(prepared: Prepared, attempt: Attempt, *, resume: bool, stop: Stop) -> Path | None:
    """Run the sft phases, one after the other, each from what the one before has made; returns
    the last checkpoint, or the run's own where there is no such phase.

    None after a stop, with a checkpoint of that step on disk: with `--resume` the phase goes on
    from it, and a finished one is not repeated.
    """
    checkpoint: Path | None = prepared.checkpoint
    for number in range(len(prepared.run.cold_start)):
        if checkpoint is not None:
            stop.patient = True
            checkpoint = _phase(prepared, number, checkpoint, attempt, resume=resume, stop=stop)
    return checkpoint


def _phase(
    prepared: Prepared,
    number: int,
    start: Path,
    attempt: Attempt,
    *,
    resume: bool,
    stop: Stop,
) -> Path | None:
    """One phase in a thread of its own, with a look at it, and at `stop`, twice a second."""
    run = prepared.run
    folder = run.output / "sft" / str(number)
    with ThreadPoolExecutor(1, thread_name_prefix="sft") as pool, Progress() as progress:
        phase = run.cold_start[number]
        result = pool.submit(train_sft, run, phase, start, folder, resume, attempt)
        while wait([result], timeout=POLL_S).not_done:
            status = _status(prepared, number, folder)
            progress.update(status)
            write_status(run.output, status)
            if stop.signal:
                ask_to_stop(folder)
    stop.patient = False
    trained = result.result()
    if trained is None:
        write_status(run.output, _status(prepared, number, folder), ended=True)
        told = f"stopped by {stop.name}; --resume goes on from {_step(folder)}"
        Console(highlight=False).print(told, soft_wrap=True)
    return trained


def _step(folder: Path) -> str:
    last = _last_line(folder / METRICS)
    return f"step {last.get('step', 0)} of {last.get('steps', '?')} in {folder}"


def _status(prepared: Prepared, number: int, folder: Path) -> Status:
    run = prepared.run
    last = _last_line(folder / METRICS)
    phase = run.cold_start[number]
    lesson = f"lesson {phase.lesson.name}" if phase.lesson else "demonstrations"
    return Status(
        run=run.output.name,
        phase="sft",
        iteration=number + 1,
        phase_index=number + 1,
        phases=len(run.schedule),
        step=int(last.get("step", 0)),
        steps=int(last.get("steps", 0)),
        message=lesson,
    )


def _last_line(path: Path) -> dict[str, Any]:
    """The newest whole line of a metrics file; empty before there is one."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1]) if lines else {}
