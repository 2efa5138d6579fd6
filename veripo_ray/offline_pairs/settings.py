"""What can be set on `veripo pairs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError
from yaml import YAMLError

from veripo_ray import config
from veripo_ray.errors import ConfigError
from veripo_ray.mistakes import explain
from veripo_ray.records import Kind
from veripo_ray.verifier.sources import Source


class OfflinePairs(Source):
    """As in a run: `pairs.*` are its `pairs.*`, `checks.*` its `verifier.checks.*`."""

    pairs: config.Pairs = config.Pairs()
    kind: Kind | None = Field(None, description="of the questions of lines that name none")
    seed: int = Field(0, description="the same file, settings and seed: the same pairs")


def read(overrides: Sequence[str], options: Mapping[str, Any]) -> OfflinePairs:
    """Checked settings from key=value and the command's options; an option that is None says
    nothing. Raises ConfigError that lists every mistake."""
    for item in overrides:
        if not all(item.partition("=")[:2]):
            raise ConfigError(f"{item!r} is not a setting", fix="write key=value")
    given = {name: value for name, value in options.items() if value is not None}
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
        return OfflinePairs.model_validate(settings | given)
    except ValidationError as error:
        problem = "; ".join(explain(error, OfflinePairs))
    except (OmegaConfBaseException, YAMLError) as error:
        problem = str(error)
    known = ", ".join(OfflinePairs.model_fields)
    raise ConfigError(f"pairs cannot be built: {problem}", fix=f"known settings: {known}")
