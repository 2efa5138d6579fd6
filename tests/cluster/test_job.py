"""`ray job submit` on a cluster that wants a token: cancelled halfway, the run goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cluster import job
from tests.cluster.conftest import RECIPE
from veripo_ray import journal

pytestmark = pytest.mark.timeout(900)
REPOSITORY = Path(__file__).parents[2]
LIMIT_S = 400
SECRET = "a-token-that-no-file-of-the-run-may-hold"


class Head:
    """`ray start --head` with processes, ports, files and a home folder of its own."""

    def __init__(self, folder: Path, port: Callable[[], int]) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        self.dashboard = f"http://127.0.0.1:{(dashboard := port())}"
        python = Path(sys.executable).parent
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "HOME": str(self.home),
            "PATH": f"{python}:{os.environ['PATH']}",
            "RAY_ADDRESS": self.dashboard,
        }
        self.ray("get-auth-token", "--generate")
        ports = {"port": port(), "dashboard-port": dashboard, "ray-client-server-port": port()}
        ports |= {"dashboard-agent-listen-port": port()}
        ports |= {"min-worker-port": 0, "max-worker-port": 0}
        self.process = subprocess.Popen(
            ["ray", "start", "--head", "--block", "--num-cpus=16", f"--temp-dir={folder / 't'}"]
            + ["--node-ip-address=127.0.0.1", f"--object-store-memory={200 << 20}"]
            + [f"--{name}={number}" for name, number in ports.items()],
            env={k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"},
            stdout=(folder / "head.log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of Ray's, as one who has the token would give it."""
        return subprocess.run(
            ["ray", *arguments],
            env=self.environment,
            cwd=REPOSITORY,
            check=False,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    def ray(self, *arguments: str) -> str:
        """What the command prints; it must succeed."""
        done = self.command(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, name: str, *arguments: str, wait: bool) -> str:
        """Submit `python -m veripo_ray train ...`; its log when waited for."""
        secret = json.dumps({"env_vars": {"HF_TOKEN": SECRET}})
        options = [] if wait else ["--no-wait"]
        return self.ray(
            *("job", "submit", "--working-dir", ".", "--submission-id", name, *options),
            *("--runtime-env-json", secret, "--"),
            *("python", "-m", "veripo_ray", "train", *arguments),
        )

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + 120
        while self.command("job", "list").returncode:
            assert self.process.poll() is None, (self.folder / "head.log").read_text()
            assert time.monotonic() < deadline, "the head did not start"
            time.sleep(1)

    def end(self) -> None:
        """These processes and no others."""
        ours = psutil.Process(self.process.pid).children(recursive=True)
        for process in (self.process, *ours):
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(ours, timeout=10)[1]:
            process.kill()
        self.process.kill()
        self.process.wait(30)


@pytest.fixture(scope="module")
def head(free_port: Callable[[], int]) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="vr-", dir="/tmp"))  # paths of sockets must be short
    head = Head(folder, free_port)
    try:
        head.wait_until_up()
        yield head
    finally:
        head.end()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_job_that_was_cancelled_halfway_goes_on_with_resume(
    head: Head, free_port: Callable[[], int]
) -> None:
    """With a relative output, whose folder must outlive the job's own."""
    recipe = head.folder / "small.yaml"
    recipe.write_text(RECIPE.format(port=free_port()))
    output = head.home / "veripo-ray" / "runs" / "small"
    long = ("data.tinyworld.train=320", "grpo.questions=320", "schedule=[grpo,dpo]")
    arguments = (str(recipe), *long, "--output", "runs/small")
    head.submit("first", *arguments, wait=False)
    deadline, metrics = time.monotonic() + LIMIT_S, output / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert time.monotonic() < deadline, head.ray("job", "logs", "first")
        time.sleep(0.1)
    head.ray("job", "stop", "first")
    cancelled = head.ray("job", "logs", "first")
    # Ray gives the driver three seconds; the coordinator needs none to come to its checkpoint
    last = cancelled.strip().splitlines()[-1]
    assert "stopped by SIGTERM" in last or "stops after this step" in last, cancelled
    assert "--resume goes on" in last
    said = head.submit("second", *arguments, "--resume", wait=True)
    assert f"finished: {output}" in said
    summary = json.loads((output / "summary.json").read_text())
    assert [stage["phase"] for stage in summary["stages"]] == ["initial", "grpo", "dpo"]
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    places = [(step["phase"], step["step"]) for step in steps]
    assert len(places) == len(set(places))
    for records in (journal.read_groups(output), journal.read_pairs(output)):
        ids = [record.id for record in records]
        assert ids
        assert len(ids) == len(set(ids))
    assert SECRET not in cancelled + said + (output / "config.yaml").read_text()


def test_a_relative_output_of_a_job_lies_where_it_outlives_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    relative, absolute = Path("runs/a"), tmp_path / "a"
    assert job.lasting(relative) == relative  # not in a job
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("VERIPO_HOME", str(tmp_path))
    assert job.lasting(relative) == tmp_path / "runs" / "a"
    assert job.lasting(absolute) == absolute


def test_files_of_the_working_directory_are_the_same_in_every_job() -> None:
    """Each job has a copy of its own, in a folder named after the contents of all of it."""
    copies = [Path(f"/t/s/runtime_resources/working_dir_files/_ray_pkg_{n}/q.jsonl") for n in "ab"]
    first, second = map(job.same_anywhere, copies)
    assert first == second != job.same_anywhere(copies[0].with_name("other.jsonl"))


CHECKPOINTING = """
import pathlib, signal, sys, time
file = pathlib.Path(sys.argv[1])
def stop(*_):
    time.sleep(1)
    file.write_text("checkpoint")
    sys.exit()
signal.signal(signal.SIGTERM, stop)
file.touch()
time.sleep(600)
"""
LEAVE = """
import sys
from cluster.kuberay.leave import leave
wait = leave(sys.argv[1], stop=False, within_s=2)  # as a worker's pod does
print(wait, leave(sys.argv[1], stop=True, within_s=120))  # and a head's
"""


def test_the_end_of_a_pod_waits_for_the_checkpoint_of_its_jobs(head: Head) -> None:
    script, file = head.folder / "checkpointing.py", head.folder / "file"
    script.write_text(CHECKPOINTING)
    command = ("python", str(script), str(file))
    head.ray("job", "submit", "--no-wait", "--submission-id", "third", "--", *command)
    deadline = time.monotonic() + LIMIT_S
    while not file.exists():
        assert time.monotonic() < deadline, head.ray("job", "logs", "third")
        time.sleep(0.1)
    done = subprocess.run(
        [sys.executable, "-c", LEAVE, head.dashboard],
        env=head.environment,
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.stdout.split() == ["False", "True"], done.stderr
    assert file.read_text() == "checkpoint"


def test_a_run_whose_driver_was_killed_makes_way_for_the_attempt_that_goes_on(
    ray_session: str,
    start: Callable[..., subprocess.Popen[str]],
    free_port: Callable[[], int],
    tmp_path: Path,
) -> None:
    """As after `ray job stop`, which kills a driver that takes its time: the coordinator is still
    at work, in the same cluster and folder."""
    import ray

    recipe, output = tmp_path / "small.yaml", tmp_path / "run"
    recipe.write_text(RECIPE.format(port=free_port()))
    address = ray.get_runtime_context().gcs_address
    long = ("data.tinyworld.train=160", "grpo.questions=160", "schedule=[grpo]")
    arguments = ("train", recipe, *long, "--output", output)
    killed = start(*arguments, RAY_ADDRESS=address)
    deadline = time.monotonic() + LIMIT_S
    while not ((output / "metrics.jsonl").exists() and (output / "metrics.jsonl").read_text()):
        assert killed.poll() is None, killed.stdout and killed.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.kill()
    said, _ = start(*arguments, "--resume", RAY_ADDRESS=address).communicate(timeout=LIMIT_S)
    assert "an earlier attempt at this run is still at work" in said
    assert said.strip().splitlines()[-1] == f"finished: {output}"
    assert {path.name for path in (output / "attempts").glob("*.json")} == {
        "000001.json",
        "000002.json",
    }
    ids = [group.id for group in journal.read_groups(output)]
    assert len(ids) == len(set(ids)) == 160
