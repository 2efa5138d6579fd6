"""The doctor on the machine: shortages, taken ports and what a killed Ray left behind."""

from __future__ import annotations

import resource
import socket
from collections import namedtuple

import pytest

from veripo_ray import config
from veripo_ray.doctor import machine

Usage = namedtuple("Usage", "free")


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_enough_of_everything_is_fine_and_says_how_much(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUP_LIMIT", tmp_path / "none")
    enough = [
        machine.shared_memory(str(tmp_path), wanted_gb=0),
        machine.memory(wanted_gb=0),
        machine.disk(wanted_gb=0, ray_folder=tmp_path),
        machine.open_files(wanted=1),
    ]
    assert [finding.status for finding in enough] == ["ok"] * 4
    assert all(any(letter.isdigit() for letter in finding.seen) for finding in enough)


def test_a_shortage_is_a_warning_with_its_remedy(tmp_path):
    scarce = [
        machine.shared_memory(str(tmp_path), wanted_gb=1e9),
        machine.memory(wanted_gb=1e9),
        machine.disk(wanted_gb=1e9, ray_folder=tmp_path),
    ]
    assert [finding.status for finding in scarce] == ["warn"] * 3
    assert "--shm-size" in scarce[0].fix
    assert "--output" in scarce[2].fix


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    limit.write_text(f"{2 * machine.GB}\n")
    monkeypatch.setattr(machine, "CGROUP_LIMIT", limit)
    assert "2.0 GB available" in machine.memory().seen


def test_a_disk_too_full_for_ray_stops_a_run_even_before_its_folder_exists(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "RAY_DISK_LIMIT", 0.0)
    finding = machine.disk(ray_folder=tmp_path / "not" / "yet")
    assert finding.status == "fail"
    assert "RAY_TMPDIR" in finding.fix


@pytest.mark.parametrize(
    ("limits", "status", "fix"),
    [
        ((1024, 1_048_576), "warn", "ulimit -n 1048576"),
        ((1024, resource.RLIM_INFINITY), "warn", "ulimit -n 65536"),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), "ok", ""),
    ],
)
def test_few_open_files_are_raised_by_ulimit(monkeypatch, limits, status, fix):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda what: limits)
    finding = machine.open_files()
    assert (finding.status, finding.fix) == (status, fix)


def test_a_taken_port_is_named_with_the_program_that_holds_it(listener):
    finding = machine.ports(config.Verifier(port=listener))
    assert finding.status == "warn"
    assert f"{listener} (the verifier) is taken by" in finding.seen
    assert f"verifier.port={listener + 1}" in finding.fix


def test_a_port_whose_holder_the_system_hides_is_still_reported(monkeypatch, listener):
    def denied(kind):
        raise machine.psutil.AccessDenied

    monkeypatch.setattr(machine.psutil, "net_connections", denied)
    assert "is taken" in machine.ports(config.Verifier(port=listener)).seen


def test_free_ports_are_listed(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    monkeypatch.setattr(machine, "DASHBOARD_PORT", free)
    finding = machine.ports(config.Verifier(port=free))
    assert (finding.status, finding.fix) == ("ok", "")


def test_without_a_cluster_file_a_run_starts_its_own_ray(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert machine.ray_cluster_file(tmp_path).status == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert machine.ray_cluster_file(tmp_path).status == "ok"


def test_an_address_left_by_a_killed_head_stops_a_run_and_the_file_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "ray_current_cluster"
    file.write_text("127.0.0.1:1\n")
    finding = machine.ray_cluster_file(tmp_path)
    assert finding.status == "fail"
    assert f"{file} names 127.0.0.1:1, where nothing answers" in finding.seen
    assert f"rm {file}" in finding.fix


def test_a_cluster_that_answers_is_one_to_join(tmp_path, monkeypatch, listener):
    monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{listener}")
    finding = machine.ray_cluster_file(tmp_path)
    assert finding.status == "ok"
    assert "a run joins it" in finding.seen
