"""Runs over three nodes with fake GPUs, of which one goes away in the middle, against a run on one
node: nothing is lost or written twice, and the results are the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from veripo_ray import journal
from veripo_ray.records import Group

pytestmark = pytest.mark.timeout(1800)
LIMIT_S = 600.0
STEPS, BATCH = 4, 8
SETTINGS = (
    "schedule=[grpo]",
    f"grpo.questions={STEPS * BATCH}",
    "grpo.epochs=2",
    "grpo.kl_coef=0.1",
    "grpo.train_batch=4",
    "grpo.filter_groups=false",
    "learner.ranks=2",
    "rollout.workers=2",
    "evaluation.questions=8",
)
Result = tuple[int, str]
Places = dict[str, list[str]]  # the nodes of a class's actors, by name
Lossy = Callable[..., tuple[Path, str, Places]]


class Nodes:
    """The cluster of `three_nodes.py`, led from here."""

    def __init__(self, folder: str) -> None:
        script = Path(__file__).with_name("three_nodes.py")
        self._log = open(Path(folder, "said.txt"), "w+")  # noqa: SIM115 (as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, str(script), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # Ray refuses to count GPUs that this variable hides
            env={n: value for n, value in os.environ.items() if n != "CUDA_VISIBLE_DEVICES"},
        )
        self.told, self._whole = self._hear(), True

    def make_whole(self) -> None:
        """Three nodes, whichever went away before."""
        if not self._whole:
            self.order("add")
            self._whole = True

    def take_one(self) -> None:
        """The third node away."""
        self.order("remove")
        self._whole = False

    def places(self) -> Places:
        self.order("where")
        return self.told["actors"]

    def order(self, word: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        self.told = self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self._log.seek(0)
        raise AssertionError(self._log.read())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            self._log.close()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    folder = tempfile.mkdtemp(prefix="nodes-", dir="/tmp")  # short: it holds sockets
    cluster = Nodes(folder)
    yield cluster
    cluster.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def one_node(
    veripo: Callable[..., Result], recipe_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("one") / "run"
    zero = "learner.zero_stage=2"
    status, said = veripo("train", recipe_file, zero, *SETTINGS, "--output", output, limit_s=900)
    assert status == 0, said
    return output


@pytest.fixture
def lossy(
    nodes: Nodes,
    recipe_file: Path,
    start: Callable[..., subprocess.Popen[str]],
    free_port: Callable[[], int],
    tmp_path: Path,
) -> Lossy:
    """A run on the three nodes, the third of which goes away after the first step: its folder, what
    it said, and where its actors sat before that."""

    def run(*changes: str) -> tuple[Path, str, Places]:
        nodes.make_whole()
        output = tmp_path / "run"
        arguments = (*SETTINGS, *changes, "placement.rehearse=true", "device=cpu")
        port = f"verifier.port={free_port()}"
        process = start(
            "train", recipe_file, *arguments, port, "--output", output,
            RAY_ADDRESS=nodes.told["address"],
        )  # fmt: skip
        try:
            _wait(lambda: len(_points(output)) >= 1, process)
            places = nodes.places()
            nodes.take_one()
            said, _ = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
        assert process.returncode == 0, said
        return output, said, places

    return run


def _wait(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline, "the run did not get that far"
        time.sleep(0.02)


def _points(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _groups(folder: Path) -> list[Group]:
    return list(journal.read_groups(folder))


def _assert_same_results(run: Path, other: Path) -> None:
    """Every group once, in the same order, and the same learned from it.

    The first step ends before anything is lost: equal to rounding. After that a worker may see
    other company for a question, which rounds otherwise; where a token is sampled otherwise for it,
    what is learned differs. Mostly none is.
    """
    groups, others = _groups(run), _groups(other)
    assert [group.id for group in groups] == [group.id for group in others]
    assert len({group.id for group in groups}) == STEPS * BATCH
    judged = [verdict.group_id for verdict in journal.read_judged(run)]
    assert judged == [group.id for group in groups]
    assert list(map(_tokens, groups[:BATCH])) == list(map(_tokens, others[:BATCH]))
    points, expected = _points(run), _points(other)
    assert [point["step"] for point in points] == list(range(1, STEPS + 1))
    for name in ("loss", "grad_norm", "kl", "accuracy"):
        assert points[0]["values"][name] == pytest.approx(expected[0]["values"][name], rel=1e-3)
    for point, same in zip(points, expected, strict=True):
        assert point["values"]["accuracy"] == pytest.approx(same["values"]["accuracy"], abs=0.15)
    summary = json.loads((run / "summary.json").read_text())
    assert all(stage["logprob_gap_max"] < 1e-4 for stage in summary["stages"])


def _tokens(group: Group) -> list[list[int]]:
    return [rollout.token_ids.tolist() for rollout in group.rollouts]


def test_two_ranks_two_workers_several_epochs_and_a_kl_term(one_node: Path) -> None:
    """Sharded over two learner ranks (ZeRO-2) and sampled by two workers, on one node."""
    summary = json.loads((one_node / "summary.json").read_text())
    assert [stage["phase"] for stage in summary["stages"]] == ["initial", "grpo"]
    assert summary["stages"][1]["logprob_gap_max"] < 1e-4
    assert any(point["values"]["kl"] > 0 for point in _points(one_node))
    versions = {group.rollouts[0].policy_version for group in _groups(one_node)}
    assert versions == set(range(STEPS))


def test_a_node_with_a_rollout_worker_goes_and_the_run_goes_on(
    lossy: Lossy, one_node: Path
) -> None:
    """ZeRO-2, both ranks on one node. Another worker starts where there is room."""
    output, said, places = lossy("learner.zero_stage=2")
    assert places["LearnerRank"] == ["large", "large"]
    assert "small" in places["RolloutWorker"]
    assert "rollout worker 0 is lost, 1 left" in said
    assert json.loads((output / "summary.json").read_text())["restarts"] == 0
    _assert_same_results(output, one_node)


def test_a_node_with_a_learner_rank_goes_and_the_run_goes_back_to_its_checkpoint(
    lossy: Lossy, one_node: Path
) -> None:
    """ZeRO-3, a rank on each of two nodes. Both start again on the nodes that are left."""
    output, said, places = lossy("learner.zero_stage=3", "placement.learner=spread")
    assert places["LearnerRank"] == ["large", "small"]
    assert "Going back to the last checkpoint, time 1 of max_restarts = 3" in said
    assert json.loads((output / "summary.json").read_text())["restarts"] == 1
    _assert_same_results(output, one_node)
