"""`veripo doctor`: what of this machine and installation would stop a run, and how to mend it."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from veripo_ray.doctor import installation, machine, probes
from veripo_ray.doctor.finding import Check, Finding, Running, Status

__all__ = ["CHECKS", "Finding", "diagnose", "main"]

CHECKS: tuple[Check, ...] = (
    installation.python_version,
    installation.library_versions,
    installation.vllm_version,
    installation.import_fixes,
    installation.torchvision_build,
    installation.torchaudio_build,
    probes.gpu,
    probes.vllm,
    probes.deepspeed,
    probes.decord,
    probes.ray,
    machine.ray_cluster_file,
    machine.shared_memory,
    machine.memory,
    machine.disk,
    machine.open_files,
    machine.ports,
)
_LOOKS: dict[Status, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "warn": ("!", "yellow"),
    "fail": ("✗", "bold red"),
}


def diagnose(checks: Iterable[Check] = CHECKS, *, limit_s: float = 180.0) -> list[Finding]:
    """Run all checks side by side, for at most `limit_s` seconds; findings in their order.

    Never raises: a check that fails or does not end in time is itself a finding.
    """
    deadline = time.monotonic() + limit_s
    running = [Running(check) for check in checks]
    return [check.finding(deadline) for check in running]


def main() -> int:
    """Print the findings; 1 when one of them would stop a run, else 0."""
    console = Console()
    with console.status("Looking at libraries, memory, ports, vLLM and Ray: up to a minute"):
        findings = diagnose()
    console.print(table(findings))
    console.print(_summary(findings))
    return int(any(finding.status == "fail" for finding in findings))


def table(findings: Iterable[Finding]) -> Table:
    """A row for each finding: its mark, what was looked at, what was seen and below it the fix."""
    rows = Table(box=None, show_header=False, padding=(0, 1))
    rows.add_column(no_wrap=True)
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for finding in findings:
        mark, style = _LOOKS[finding.status]
        seen = Text(finding.seen)
        if finding.fix:
            seen.append(f"\nfix: {finding.fix}", style="bold")
        rows.add_row(Text(mark, style=style), finding.name, seen)
    return rows


def _summary(findings: list[Finding]) -> str:
    failed = sum(finding.status == "fail" for finding in findings)
    warned = sum(finding.status == "warn" for finding in findings)
    if failed:
        return f"[bold red]{failed} to mend before a run can start[/], {warned} to know about."
    return f"[green]Ready.[/] {warned} to know about." if warned else "[green]Ready.[/]"
