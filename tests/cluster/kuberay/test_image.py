"""The Dockerfile: what it copies is there, versions are pinned, and nobody in it is root."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.kuberay import pods

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "cluster" / "kuberay"


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Instructions and their arguments, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def arguments(steps: list[tuple[str, str]], of: str) -> list[str]:
    return [said for instruction, said in steps if instruction == of]


def test_what_it_copies_is_there_and_is_let_in_from_the_context(steps):
    copied = {name for said in arguments(steps, "COPY") for name in said.split()[:-1]}
    assert {"veripo_ray", "actors", "deployments", "cluster", "constraints"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied


def test_it_ends_as_the_user_that_the_pods_run_as(steps):
    made = next(said for said in arguments(steps, "RUN") if "useradd" in said)
    assert f"--uid {pods.USER} " in made
    assert arguments(steps, "USER") == [f"{pods.USER}:{pods.USER}"]
    after = [name for name, _ in steps][[name for name, _ in steps].index("USER") :]
    assert not {"RUN", "COPY", "ADD"} & set(after)


def test_versions_come_from_the_constraints(steps):
    (install,) = [said for said in arguments(steps, "RUN") if "pip install" in said]
    assert "-r constraints/cpu.txt" in install
    assert '-c constraints/gpu.txt ".[gpu]"' in install
    (base,) = arguments(steps, "FROM")
    assert re.fullmatch(r"python:3\.11-\S+", base)  # what the constraints were made for


def test_the_tools_that_kuberays_probes_call_are_in_it(steps):
    (installed,) = [said for said in arguments(steps, "RUN") if "apt-get install" in said]
    assert {"wget", "g++"} <= set(installed.split())
    assert arguments(steps, "ENTRYPOINT") == []  # KubeRay's command is the container's
