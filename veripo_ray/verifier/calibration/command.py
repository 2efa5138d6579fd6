"""`veripo judge-calibrate FILE`: measures a judge on labelled cases."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from rich.console import Console
from yaml import YAMLError

from veripo_ray import config
from veripo_ray.errors import ConfigError
from veripo_ray.mistakes import explain
from veripo_ray.verifier import labelled
from veripo_ray.verifier.calibration.measure import Calibration, measure
from veripo_ray.verifier.calibration.printed import show
from veripo_ray.verifier.calibration.written import as_json
from veripo_ray.verifier.judges import by_name
from veripo_ray.verifier.labelled import Labelled


def calibrate(
    file: str,
    judge: str = "rules",
    overrides: Sequence[str] = (),
    *,
    written: Path | None = None,
    plot: Path | None = None,
    console: Console | None = None,
) -> Calibration:
    """Print the figures of a judge on labelled cases, and write them where asked.

    file: a name of `labelled.NAMES` or a JSONL file. overrides: settings below verifier.judges,
    such as openai.url=http://host:8000/v1. Everything is checked before the first case is judged.
    """
    name, settings = _name(judge), _settings(overrides)
    cases = labelled.load(file)
    calibration = asyncio.run(_measured(name, settings, cases))
    show(calibration, file, console or Console())
    if written is not None:
        report = as_json(calibration, file, _own(name, settings))
        written.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if plot is not None:
        from veripo_ray.verifier.calibration.plot import draw

        draw(calibration, plot)
    return calibration


async def _measured(
    name: config.JudgeName, settings: config.Judges, cases: Sequence[Labelled]
) -> Calibration:
    judge = by_name.build(name, settings)
    try:
        return await measure(judge, cases)
    finally:
        await by_name.close(judge)


def _own(name: config.JudgeName, settings: config.Judges) -> dict[str, Any]:
    """The settings that this judge goes by."""
    members: set[str] = set(settings.committee.members if name == "committee" else ())
    return settings.model_dump(mode="json", include=members | {name})


def _name(judge: str) -> config.JudgeName:
    for name in get_args(config.JudgeName):
        if name == judge:
            return name
    raise ConfigError(
        f"there is no judge {judge!r}", fix=f"use one of {', '.join(get_args(config.JudgeName))}"
    )


def _settings(overrides: Sequence[str]) -> config.Judges:
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not (key and equals):
            raise ConfigError(
                f"{item!r} is not a setting", fix="write key=value, as in openai.url=..."
            )
    try:
        raw: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=True)
        return config.Judges.model_validate(raw)
    except ValidationError as error:
        wrong = explain(error, config.Judges)
        raise ConfigError(
            "the judge's settings need mending: " + "; ".join(wrong),
            fix="correct the key=value; keys are those below verifier.judges",
        ) from None
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(
            f"the judge's settings cannot be read: {error}", fix="write key=value"
        ) from None
