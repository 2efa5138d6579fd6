"""What can be set on the verifier's endpoint, by `serve run` and `serve deploy`."""

from __future__ import annotations

from typing import Any, Literal

from omegaconf import OmegaConf
from pydantic import Field, ValidationError

from veripo_ray import config
from veripo_ray.errors import ConfigError


class Args(config.Settings):
    """What `serve run deployments.verifier:build key=value` may set."""

    judge: Literal["rules"] = "rules"
    checks: config.Checks = config.Checks()
    tokenizer: str | None = Field(None, description="checkpoint folder; None counts words")
    replicas: config.Count = 1
    timeout_s: config.Positive = 60.0
    max_items: config.Count = 4096
    max_body_mb: config.Positive = 16.0
    max_ongoing: config.Count = Field(16, description="requests at work in a replica")
    max_queued: config.Count = Field(256, description="requests that wait; more are refused")


def read(args: dict[str, Any]) -> Args:
    """Checked settings; dotted keys reach into sections. Raises ConfigError that lists mistakes."""
    settings = OmegaConf.create({})
    for key, value in args.items():
        OmegaConf.update(settings, str(key), value)
    try:
        return Args.model_validate(OmegaConf.to_container(settings))
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(
            "the verifier cannot be built: " + "; ".join(wrong),
            fix=f"known settings: {', '.join(Args.model_fields)}",
        ) from None
