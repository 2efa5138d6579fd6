"""A run's figures reach Weights & Biases where that is wanted, and its absence is told at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from actors.runbook import RunBook
from veripo_ray import config, tracking
from veripo_ray.errors import ConfigError
from veripo_ray.runlog import MetricsLog, read_metrics
from veripo_ray.tracking import WandbRun


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., config.Run]:
    def make(**settings: object) -> config.Run:
        return config.Run(
            model="tinyworld",
            output=tmp_path / "run",
            schedule=(config.GrpoPhase(),),
            data=config.Data(tinyworld=config.TinyWorldData()),
            tracking=config.Tracking.model_validate(settings),
        )

    return make


def test_figures_reach_wandb_offline_and_go_on_in_one_run(made: Callable[..., config.Run]) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    run = made(wandb={"project": "videos", "mode": "offline"})
    tracking.check(run.tracking.wandb)
    assert run.tracking.wandb is not None
    run.output.mkdir()
    for start in (1, 3):  # the second session resumes the first
        wandb = WandbRun(run, run.tracking.wandb)
        with MetricsLog(run.output, tensorboard=False, also=wandb) as log:
            for step in (start, start + 1):
                log.append("grpo", 1, step, {"accuracy_of_rollouts": step / 8})
    assert [point.step for point in read_metrics(run.output)] == [1, 2, 3, 4]
    files = list(run.output.glob("wandb/offline-run-*/*.wandb"))
    assert {path.name for path in files} == {f"run-{(run.output / 'wandb-id').read_text()}.wandb"}
    assert all(b"grpo/accuracy_of_rollouts" in path.read_bytes() for path in files)


def test_without_the_package_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"videos, but the package wandb is not installed"):
        tracking.check(config.Wandb(project="videos"))
    tracking.check(None)


def test_without_a_key_nothing_starts_online(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.delenv(tracking.KEY, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    online = config.Wandb(project="videos")
    with pytest.raises(ConfigError, match=r"mode = online, but WANDB_API_KEY is not set"):
        tracking.check(online)
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    (tmp_path / ".netrc").chmod(0o600)
    tracking.check(online)


def test_tensorboard_can_be_left_out(made: Callable[..., config.Run]) -> None:
    for wanted in (False, True):
        run = made(tensorboard=wanted)
        book = RunBook(run, questions=1, resume=False)
        book.metrics.append("grpo", 1, 1, {"accuracy": 0.5})
        book.close()
        assert (run.output / "tensorboard").exists() == wanted
