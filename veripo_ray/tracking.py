"""Weights & Biases, for those who follow runs there: the same figures as metrics.jsonl."""

from __future__ import annotations

import importlib.util
import netrc
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from veripo_ray.config import Run, Wandb
from veripo_ray.errors import ConfigError

if TYPE_CHECKING:
    from veripo_ray.runlog import Point

KEY, SERVER = "WANDB_API_KEY", "WANDB_BASE_URL"
_ID = "wandb-id"  # in the run's folder, so that a resumed run goes on in the same curves


def check(cfg: Wandb | None) -> None:
    """Before anything starts. Raises ConfigError where the package or the key is missing."""
    if cfg is None:
        return
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"tracking.wandb.project = {cfg.project}, but the package wandb is not installed",
            fix="pip install 'veripo-ray[wandb]', or leave tracking.wandb out",
        )
    if cfg.mode == "online" and not (os.environ.get(KEY) or _in_netrc()):
        raise ConfigError(
            f"tracking.wandb.mode = online, but {KEY} is not set and ~/.netrc has no key",
            fix="run `wandb login` where the run starts, or say tracking.wandb.mode=offline",
        )


class WandbRun:
    """The run's page. The key stays where it is: Weights & Biases reads it by itself."""

    def __init__(self, run: Run, cfg: Wandb) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=cfg.project,
            entity=cfg.entity,
            mode=cfg.mode,
            name=run.output.name,
            id=_id_of(run.output),
            resume="allow",
            dir=str(run.output),
            config=run.model_dump(mode="json"),
            settings=wandb.Settings(console="off", silent=True),
        )

    def append(self, point: Point, step: int) -> None:
        """step: the number of the line in metrics.jsonl, as in TensorBoard. Weights & Biases keeps
        what it has: steps that a resumed run repeats are not replaced there."""
        values = {f"{point.phase}/{name}": value for name, value in point.values.items()}
        self._run.log(values, step=step)

    def close(self) -> None:
        import wandb

        self._run.finish()
        wandb.teardown()  # its own process has written everything when this returns


def _id_of(folder: Path) -> str:
    path = folder / _ID
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:16])
    return path.read_text()


def _in_netrc() -> bool:
    server = os.environ.get(SERVER, "https://api.wandb.ai")
    try:
        return netrc.netrc().authenticators(urlsplit(server).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
