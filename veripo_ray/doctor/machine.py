"""Checks of the machine: memory, disk, files and ports that a run will want."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from pathlib import Path

import psutil

from veripo_ray import config
from veripo_ray.doctor.finding import Finding

GB = 1024**3
RUN_MEMORY_GB = 8.0  # the tiny world's whole run: vLLM, learner, verifier and Ray itself
RUN_DISK_GB = 5.0
RAY_DISK_LIMIT = 95.0  # percent; above it Ray refuses to spill and to start tasks
DASHBOARD_PORT = 8265
RAY_FOLDER = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def shared_memory(folder: str = "/dev/shm", wanted_gb: float = 2.0) -> Finding:
    """Ray keeps its objects in shared memory; without enough it falls back to slow disk."""
    free = shutil.disk_usage(folder).free / GB
    seen = f"{free:.1f} GB free in {folder}"
    if free >= wanted_gb:
        return Finding("shared memory", "ok", seen)
    fix = "start the container with --shm-size=8g (Kubernetes: an emptyDir with medium: Memory)"
    return Finding("shared memory", "warn", f"{seen}, fewer than {wanted_gb:g}", fix)


def memory(wanted_gb: float = RUN_MEMORY_GB) -> Finding:
    """Memory that is available, a container's own limit included."""
    available = psutil.virtual_memory().available
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    if limit != "max":
        available = min(available, int(limit))
    seen = f"{available / GB:.1f} GB available"
    if available >= wanted_gb * GB:
        return Finding("memory", "ok", seen)
    fix = "end other programs, or give the container more memory"
    return Finding("memory", "warn", f"{seen}; even the tiny world takes {wanted_gb:g}", fix)


def disk(wanted_gb: float = RUN_DISK_GB, ray_folder: Path = RAY_FOLDER) -> Finding:
    """Room for checkpoints here, and for the objects that Ray spills."""
    free = shutil.disk_usage(".").free / GB
    ray_usage = psutil.disk_usage(str(_nearest_existing(ray_folder))).percent
    if ray_usage >= RAY_DISK_LIMIT:
        seen = f"the disk of {ray_folder} is {ray_usage:.0f}% full; Ray stops at {RAY_DISK_LIMIT:g}"
        return Finding("disk", "fail", seen, "free some, or set RAY_TMPDIR to another disk")
    seen = f"{free:.0f} GB free here"
    if free < wanted_gb:
        fix = "write the run elsewhere: --output DIR"
        return Finding("disk", "warn", f"{seen}, fewer than {wanted_gb:g}", fix)
    return Finding("disk", "ok", seen)


def open_files(wanted: int = 4096) -> Finding:
    """Ray opens a few files for each worker and connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return Finding("open files", "ok", f"at most {soft}")
    most = 65_536 if hard == resource.RLIM_INFINITY else hard
    return Finding("open files", "warn", f"at most {soft}", f"ulimit -n {max(most, wanted)}")


def ports(settings: config.Verifier | None = None) -> Finding:
    """The ports that a run listens on unless it is told otherwise."""
    settings = settings or config.Verifier()
    wanted = {settings.port: "the verifier", DASHBOARD_PORT: "Ray's dashboard"}
    taken = [port for port in wanted if _in_use(settings.host, port)]
    names = {port: f"{port} ({wanted[port]})" for port in wanted}
    if not taken:
        return Finding("ports", "ok", f"{', '.join(names.values())} free")
    seen = "; ".join(f"{names[port]} is taken{_owner(port)}" for port in taken)
    fix = "another run may be using it; else end that program"
    if settings.port in taken:
        fix += f", or give the verifier another: verifier.port={settings.port + 1}"
    return Finding("ports", "warn", seen, fix)


def ray_cluster_file(ray_folder: Path = RAY_FOLDER) -> Finding:
    """A head that was killed leaves its address behind, and the next run would try to join it."""
    file = ray_folder / "ray_current_cluster"
    address = os.environ.get("RAY_ADDRESS", "")
    source, remedy = "RAY_ADDRESS", "unset RAY_ADDRESS"
    if not address and file.exists():
        address, source, remedy = file.read_text().strip(), str(file), f"rm {file}"
    if not address or address in ("local", "auto"):
        return Finding("Ray cluster", "ok", "none yet; a run starts its own")
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if _in_use(host, int(port) if port.isdigit() else 0):
        return Finding("Ray cluster", "ok", f"{address}, from {source}; a run joins it")
    seen = f"{source} names {address}, where nothing answers"
    return Finding("Ray cluster", "fail", seen, f"{remedy}, or start that cluster")


def _in_use(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2.0):
            return True
    except OSError:
        return False


def _owner(port: int) -> str:
    """Which program listens there, where the system tells."""
    try:
        listening = [
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        ]
        process = psutil.Process(next(pid for pid in listening if pid))
        return f" by {process.name()}, process {process.pid}"
    except (psutil.Error, StopIteration):
        return ""


def _nearest_existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
