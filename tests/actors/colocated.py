"""Two GPUs that do not exist, shared by workers and ranks of the real Team: run as a script, which
prints what happened. Actors are thin: they tell what they are asked to do, and do nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray

import actors.team as teams
from actors.feed import Task
from veripo_ray import config
from veripo_ray.records import Group, Kind, Question, Rollout
from veripo_ray.sampler import Sampled
from veripo_ray.weights import Manifest, Snapshot


@ray.remote(num_cpus=0)
class Log:
    def __init__(self) -> None:
        self.events: list[list[Any]] = []

    def add(self, *event: Any) -> None:
        self.events.append(list(event))

    def all(self) -> list[list[Any]]:
        return self.events


class Thin:
    """Whoever it is: its GPUs, and its log."""

    name = "?"

    def __init__(self, *_: Any, **settings: Any) -> None:
        self.log = ray.get_actor("log")
        self.number = settings.get("rank", settings.get("seed"))
        self.note("start", settings.get("sleeps"), settings.get("rests"))

    def note(self, *event: Any) -> None:
        ray.get(self.log.add.remote(self.name, self.number, *event))

    def ping(self) -> int:
        return 0

    def begin_update(self, manifest: Manifest) -> None: ...

    def take(self, bucket: Snapshot) -> None: ...

    def finish_update(self) -> None: ...

    def gpus(self) -> list[str]:
        return [str(gpu) for gpu in ray.get_gpu_ids()]


class Worker(Thin):
    name = "worker"

    def sleep(self, level: int) -> None:
        self.note("sleep", level)

    def wake(self, tags: list[str]) -> None:
        self.note("wake", *tags)

    def finish_update(self) -> None:
        self.note("weights")

    def sample(self, share: Any, dealer: Any = None, name: str = "", **sampling: Any) -> Any:
        self.note("sample")
        rollout = Rollout(
            text="x",
            token_ids=np.zeros(1, np.int32),
            logprobs=np.zeros(1, np.float32),
            finish_reason="stop",
            policy_version=0,
        )
        for id_, *_ in share:
            yield [Sampled(id_, np.zeros(1, np.int32), (rollout,) * sampling["n"])]


class Rank(Thin):
    name = "rank"

    def address(self) -> Any:
        return ("127.0.0.1", 1)

    def sees(self, _: str) -> bool:
        return True

    def join(self, address: Any) -> None:
        self.note("join")

    def manifest(self, version: int) -> Manifest:
        return Manifest(version, "float32", {"weight": (1,)})

    def weights(self, bucket_bytes: int) -> Iterator[Snapshot]:
        if self.number == 0:
            yield {"weight": np.zeros(1, np.float32)}

    def logprobs(self, groups: list[Group], features: Any) -> Any:
        self.note("logprobs")
        return {group.id: [rollout.logprobs for rollout in group.rollouts] for group in groups}

    def grpo_step(self, *_: Any) -> dict[str, float]:
        self.note("grpo step")
        return {}

    def dpo_step(self, *_: Any) -> dict[str, float]:
        self.note("dpo step")
        return {}


class Reference(Thin):
    name = "reference"

    def attach(self, shard: np.ndarray, features: Any) -> np.ndarray:
        self.note("attach")
        return shard


class Encoder(Thin):
    name = "encoder"

    @classmethod
    def actor(cls, cfg: config.Features, **seat: Any) -> Any:
        return ray.remote(cls).options(**seat)


class Team(teams.Team):
    Encoder = Encoder  # type: ignore[assignment]
    RolloutWorker = Worker


async def play(run: config.Run, checkpoint: Path) -> dict[str, Any]:
    team = await Team.start(
        run, checkpoint, resumed=None, reference=None, version=0, tell=lambda _: None
    )
    workers = list(team.workers.there.values())
    gpus = [ray.get(actor.gpus.remote()) for actor in (*workers, *team.ranks, team.reference)]
    questions = [Question(id=f"q{n}", text="?", kind=Kind.NUMERIC, gold="1") for n in range(2)]
    tasks = [Task(q, np.zeros(1, np.int32), ray.put(())) for q in questions]
    await team.measure_gap(tasks[0], 1.0)
    groups = [group async for group in team.explore(tasks, "a")]
    await team.grpo_step([], {}, config.Grpo(), None, {})
    await team.publish(1)
    assert len(groups) == len([group async for group in team.explore(tasks, "b")]) == 2
    await team.refit_reference(1)
    await team.attach_reference([], {})
    await team.dpo_step([], {}, config.Dpo())
    await team.publish(2)
    events = ray.get(ray.get_actor("log").all.remote())
    team.close()
    return {"gpus": gpus, "events": events}


def main(checkpoint: str) -> None:
    ray.init(
        address="local",
        num_cpus=16,
        num_gpus=2,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        object_store_memory=100 * 1024**2,
    )
    log = Log.options(name="log").remote()
    teams.LearnerRank, teams.Reference = Rank, Reference  # type: ignore[misc,assignment]
    run = config.Run.model_validate(
        {
            "model": checkpoint,
            "output": "unused",
            "device": "cpu",
            "schedule": [{"phase": "grpo"}],
            "data": {"tinyworld": {}},
            "rollout": {"workers": 2, "group_size": 2},
            "learner": {"ranks": 2},
            "placement": {"layout": "colocated", "sleep_level": 2, "rehearse": True},
        }
    )
    sys.stdout.write(json.dumps(asyncio.run(play(run, Path(checkpoint)))) + "\n")
    ray.kill(log)


if __name__ == "__main__":
    main(sys.argv[1])
