"""What a run measures reaches Prometheus through Ray's exporter, and every panel of the dashboard
shows something that is measured."""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray import cloudpickle

from actors import metrics, whereabouts
from actors.metrics import COUNTERS, GAUGES, HISTOGRAMS, RunMetrics, Worker, measured
from actors.whereabouts import Where, myself
from veripo_ray.runlog import Cost

LIMIT_S = 90
DASHBOARD = Path(__file__).parents[2] / "cluster" / "dashboards" / "veripo.json"


class _Leader:
    """Measures what the coordinator does."""

    def lead(self) -> None:
        whereabouts.tell(Where("night", iteration=2, phase="grpo", version=7))
        run = RunMetrics("night")
        run.phase("grpo")
        run.step("grpo", {"accuracy": 0.5})
        run.spent({"grpo": Cost(samples=1, parts={"weight sync": 1.5})})
        for name, (_, tags) in GAUGES.items():
            if tags == ("run",):
                run.set(name, 3.0)
        run.set("veripo_step", 4, phase="grpo")


class _Worker:
    """Does what rollout workers, learner ranks and the encoder do around their libraries."""

    def __init__(self) -> None:
        self.worker = Worker(myself("rollout"))

    @measured
    def step(self) -> None:
        time.sleep(0.05)

    def sample(self) -> str:
        self.worker.media({"decodes": 2, "encodes": 2, "cache_hits": 1})
        group = SimpleNamespace(id="q", rollouts=[SimpleNamespace(token_ids=[1, 2, 3])])
        asked = [SimpleNamespace(id="q")]
        bundles = self.worker.sampling(asked, lambda requests: ([group] for _ in requests))
        assert list(bundles) == [[group]]
        return self.worker.name


def samples(text: str) -> Iterator[tuple[str, str, float]]:
    """Name, tags and value of every line of Prometheus' format."""
    for line in text.splitlines():
        if found := re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line):
            yield found[1], found[2], float(found[3])


@pytest.fixture(scope="module")
def exported(ray_session: str) -> tuple[str, dict[str, tuple[str, float]]]:
    """The sampling actor's name, and what the node's exporter says of run `night`."""
    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)
    leader = ray.remote(_Leader).options(num_cpus=0).remote()
    ray.get(leader.lead.remote())
    worker = ray.remote(_Worker).options(num_cpus=0).remote()
    ray.get(worker.step.remote())
    name = ray.get(worker.sample.remote())
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
    deadline, found = time.monotonic() + LIMIT_S, {}
    wanted = {f"ray_{name}" for name in GAUGES}
    while not wanted <= found.keys() or "ray_veripo_group_seconds_count" not in found:
        assert time.monotonic() < deadline, wanted - found.keys()
        time.sleep(1)
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        found = {n: (tags, value) for n, tags, value in samples(text) if 'run="night"' in tags}
    cloudpickle.unregister_pickle_by_value(here)
    ray.kill(leader)
    ray.kill(worker)
    return name, found


def test_everything_that_is_declared_is_exported_with_its_tags(exported):
    _, found = exported
    for declared, suffix in ((GAUGES, ""), (COUNTERS, "_total"), (HISTOGRAMS, "_count")):
        for name, (_, tags) in declared.items():
            told, _ = found[f"ray_{name}{suffix}"]
            assert all(f'{tag}="' in told for tag in tags), name


def test_an_actors_work_is_of_its_run_and_phase(exported):
    worker, found = exported
    tags, tokens = found["ray_veripo_rollout_tokens_total"]
    assert tokens == 3
    assert f'worker="{worker}"' in tags
    assert 'phase="grpo"' in tags
    tags, seconds = found["ray_veripo_busy_seconds_total"]
    assert 'work="step"' in tags
    assert 0.05 <= seconds < 60
    assert found["ray_veripo_spent_seconds"][1] == 1.5


def test_every_panel_shows_something_that_is_measured():
    known = {f"ray_{name}" for name in GAUGES}
    known |= {f"ray_{name}_total" for name in COUNTERS}
    known |= {f"ray_{n}_{part}" for n in HISTOGRAMS for part in ("bucket", "sum", "count")}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    named = {name for expr in asked for name in re.findall(r"ray_veripo_\w+", expr)}
    assert named <= known
    shown = {re.sub(r"^ray_|_(total|bucket|sum|count)$", "", name) for name in named}
    assert shown == GAUGES.keys() | COUNTERS.keys() | HISTOGRAMS.keys()


def test_tags_do_not_grow_with_the_data():
    few = {"run", "phase", "worker", "work", "part", "kind", "figure"}
    declared = [*GAUGES.values(), *COUNTERS.values(), *HISTOGRAMS.values()]
    assert {tag for _, tags in declared for tag in tags} <= few
    assert metrics.PHASES[0] == "starting"
