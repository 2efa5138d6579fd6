"""A plan as a table, as one line, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from veripo_ray.placement.cluster import GB
from veripo_ray.placement.fit import Load
from veripo_ray.placement.memory import Memory
from veripo_ray.placement.plan import Plan
from veripo_ray.placement.roles import SERVED, Process, Role

_PARTS = [part.name for part in fields(Memory)]
_SHORT = {"kv_cache": "KV", "features": "media"}


def table(plan: Plan) -> list[RenderableType]:
    """Who sits where; what a process of each role takes; how full the nodes are."""
    title = f"{plan.run.placement.layout}, device {plan.run.device}, on {plan.cluster.name}"
    seats = _plain(title, ("role", "processes", "each", "bundles", "nodes"))
    for role in Role:
        if processes := plan.processes(role):
            each, bundles = _each(processes[0][0]), _ranges(_bundles(plan, role))
            seats.add_row(role, str(len(processes)), each, bundles, _nodes(plan, role))
    memory = [_memory(plan)] if plan.model else []
    return [seats, *memory, Text("\n".join(_per_node(plan)))]


def _memory(plan: Plan) -> Table:
    a_place = "each of its GPUs" if plan.loads else "its node"
    shown = [part for part in _PARTS if any(_part(plan, role, part) for role in Role)]
    names = [_SHORT.get(part, part) for part in shown]
    found = _plain(f"GB that a process takes of {a_place}, estimated", ("role", *names, "total"))
    for column in found.columns[1:]:
        column.justify = "right"
    for role in Role:
        memory = plan.memory(role)
        if memory and memory.total:
            cells = [_gb(getattr(memory, part)) for part in shown]
            found.add_row(role, *cells, _gb(memory.total))
    return found


def _plain(title: str, columns: Sequence[str]) -> Table:
    """Narrow enough for a terminal of 80 columns."""
    found = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for name in columns:
        found.add_column(name, no_wrap=name != "nodes")
    return found


def in_short(plan: Plan) -> str:
    """One line for who starts a run."""
    parts = [
        f"{role} {len(processes)} x ({_each(processes[0][0])})"
        for role in Role
        if (processes := plan.processes(role))
    ]
    layout = f"{plan.run.placement.layout} on {plan.cluster.name}: {', '.join(parts)}"
    fullest = _fullest(plan)
    return f"{layout}; {fullest}" if fullest else layout


def as_json(plan: Plan) -> dict[str, Any]:
    """Bytes, and names as in the table."""
    return {
        "layout": plan.run.placement.layout,
        "device": plan.run.device,
        "roles": {str(role): _role(plan, role) for role in Role if plan.processes(role)},
        "bundles": [
            {
                "node": placed.node.id,
                "gpus": list(placed.gpus),
                "cpus": placed.bundle.cpus,
                "processes": [f"{p.role} {p.number}" for p in placed.bundle.processes],
            }
            for placed in plan.placed
        ],
        "gpus": [
            {"node": load.node.id, "gpu": load.gpu, "peak": load.peak, "memory": load.there}
            for load in plan.loads
        ],
    }


def _role(plan: Plan, role: Role) -> dict[str, Any]:
    first, memory = plan.processes(role)[0][0], plan.memory(role)
    parts = {part: getattr(memory, part) for part in _PARTS} if memory else None
    return {
        "processes": len(plan.processes(role)),
        "cpus": first.cpus,
        "gpus": first.gpus,
        "served": role in SERVED,
        "memory": parts and parts | {"total": sum(parts.values())},
    }


def _part(plan: Plan, role: Role, part: str) -> float:
    memory = plan.memory(role)
    return getattr(memory, part) if memory else 0.0


def _each(process: Process) -> str:
    cpus = f"{process.cpus:g} CPU{'s' if process.cpus != 1 else ''}"
    if not process.gpus:
        return cpus
    whole = process.gpus >= 1
    gpus = f"{process.gpus:g} GPU{'s' if process.gpus > 1 else ''}"
    return f"{cpus}, {gpus if whole else f'{process.gpus:.2g} of a GPU'}"


def _bundles(plan: Plan, role: Role) -> list[int]:
    return [number for number, placed in enumerate(plan.placed) if placed.bundle.has(role)]


def _ranges(numbers: list[int]) -> str:
    """`0-3,7`"""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _nodes(plan: Plan, role: Role) -> str:
    counts: dict[str, int] = {}
    for _, placed in plan.processes(role):
        name = placed.node.id[:12]
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{name} x{count}" if count > 1 else name for name, count in counts.items())


def _gb(size: float) -> str:
    return f"{size / GB:.1f}" if size >= 0.05 * GB else ("·" if not size else "<0.1")


def _per_node(plan: Plan) -> list[str]:
    lines = []
    for node in plan.cluster.nodes:
        placed = [p for p in plan.placed if p.node.id == node.id]
        if not placed:
            lines.append(f"{node.id[:12]}: nothing")
            continue
        cpus, gpus = sum(p.bundle.cpus for p in placed), sum(p.bundle.gpus for p in placed)
        used = f"{cpus:g} of {node.cpus:g} CPUs, {gpus:g} of {node.gpus:g} GPUs"
        full = _told(max(_loads(plan, node.id), key=lambda load: load.peak, default=None))
        lines.append(f"{node.id[:12]}: {used}{', ' + full if full else ''}")
    return lines


def _loads(plan: Plan, node: str) -> list[Load]:
    return [load for load in plan.loads if load.node.id == node]


def _fullest(plan: Plan) -> str:
    return _told(max(plan.loads, key=lambda load: load.peak, default=None))


def _told(load: Load | None) -> str:
    if load is None:
        return ""
    if load.there is None:
        return (
            f"the fullest GPU takes {load.peak / GB:.1f} GB (not checked: set "
            "placement.gpu_memory_gb)"
        )
    return f"the fullest GPU takes {load.peak / GB:.1f} of {load.there / GB:.1f} GB"
