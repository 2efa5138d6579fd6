"""The same as plain lines, for logs."""

from __future__ import annotations

from veripo_ray.progress.formats import UNKNOWN, duration, share, tokens, with_error
from veripo_ray.progress.status import Status
from veripo_ray.runlog import Stage


def measures(status: Status) -> list[tuple[str, str]]:
    """Name and value of every gauge; a value that is not known is UNKNOWN."""
    speed = status.tokens_per_second
    return [
        ("accuracy", share(status.accuracy)),
        ("inconsistency", share(status.inconsistency)),
        ("tokens/s", UNKNOWN if speed is None else f"{speed:,.0f}"),
        ("judged", f"{status.judged}/{status.groups}" if status.groups else UNKNOWN),
        ("pairs", f"{status.pairs:,}" if status.pairs else UNKNOWN),
    ]


def plain_line(status: Status) -> str:
    """One line of a log: only what is known."""
    parts = [status.label]
    if status.phases and status.phase_index:
        parts[0] += f" ({status.phase_index}/{status.phases})"
    if status.steps:
        parts[0] += f" step {status.step}/{status.steps}"
    parts += [f"{name} {value}" for name, value in measures(status) if value != UNKNOWN]
    if status.eta_seconds is not None:
        parts.append(f"about {duration(status.eta_seconds)} left")
    if status.message:
        parts.append(status.message)
    return f"{status.run}: " + " · ".join(parts)


def stage_line(stage: Stage) -> str:
    return (
        f"after {stage.label}: accuracy {with_error(stage.accuracy, stage.accuracy_se)}"
        f" · inconsistency {with_error(stage.inconsistency, stage.inconsistency_se)}"
        f" · think tokens {tokens(stage.mean_think_tokens)} · format {share(stage.format)}"
    )
