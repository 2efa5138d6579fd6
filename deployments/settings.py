"""What can be set on the verifier's endpoint, by `serve run` and `serve deploy`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, model_validator
from yaml import YAMLError

from veripo_ray import config
from veripo_ray.errors import ConfigError
from veripo_ray.mistakes import explain
from veripo_ray.records import Kind


class Rewards(config.Settings):
    """What `/v1/score` and `/get_reward` give for a response: r_a + r_f as in VerIPO's GRPO, less
    the penalty where the judge finds that the thinking contradicts the answer [ours]."""

    inconsistency_penalty: Annotated[float, Field(ge=0)] = Field(
        0.0, description="0 is VerIPO's own reward, for which no judge is asked"
    )
    label_kind: Kind | None = Field(
        None, description="the kind of questions whose label is only the gold answer"
    )


class Args(config.Settings):
    """What `serve run deployments.verifier:build key=value` may set."""

    judge: config.JudgeName = Field("rules", description="who says whether a chain is consistent")
    heldout: config.JudgeName | None = Field(None, description="who answers ?judge=heldout")
    judges: config.Judges = config.Judges()
    checks: config.Checks = config.Checks()
    pairs: config.Pairs = config.Pairs()
    rewards: Rewards = Rewards()
    tokenizer: str | None = Field(None, description="checkpoint folder; None counts words")

    replicas: config.Count = 1
    max_replicas: config.Count | None = Field(
        None, description="scale from `replicas` up to so many as load asks; None: do not"
    )
    target_ongoing: config.Positive = Field(
        8.0, description="requests at work in a replica that scaling aims at"
    )
    timeout_s: config.Positive = 60.0
    max_body_mb: config.Positive = 16.0
    max_items: config.Count = Field(4096, description="responses in a request; more: 413")
    max_requests: config.Count = Field(64, description="at once in a replica; more: 429")
    max_pending_items: config.Count = Field(
        8192, description="responses at once in a replica; more: 429"
    )
    max_wait_s: config.Positive | None = Field(
        None,
        description="when the responses at work will take longer: 429; None: half of timeout_s. "
        "Make it small for short waits, but not with a judge that gains from many cases at once",
    )
    max_queued: config.Count = Field(
        256,
        description="requests that Serve's proxy is finding a replica for; more: 429. A burst of "
        "that many meets it even where replicas are free",
    )

    token_env: str | None = Field(
        None,
        description="the environment variable with the bearer token, on every node with a replica; "
        "None: VERIPO_VERIFIER_TOKEN off loopback, no token on it",
    )
    allow_unauthenticated: bool = Field(
        False, description="answer everybody although others than this machine can connect"
    )
    log_level: Literal["INFO", "WARNING"] = Field("INFO", description="INFO: a line a request")

    @model_validator(mode="after")
    def _consistent(self) -> Args:
        judges = [self.judge, *([self.heldout] if self.heldout else [])]
        problems = [p for name in judges for p in config.judge_problems(name, self.judges)]
        if self.heldout == self.judge:
            problems.append(
                f"heldout = judge = {self.judge}: a judge cannot be held out from itself"
            )
        if self.max_pending_items < self.max_items:
            problems.append(
                f"max_pending_items = {self.max_pending_items} is less than max_items = "
                f"{self.max_items}, so that the largest requests were never admitted"
            )
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            problems.append(
                f"max_replicas = {self.max_replicas} is less than replicas = {self.replicas}"
            )
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))
        return self


def read(args: dict[str, Any]) -> Args:
    """Checked settings; dotted keys reach into sections, and texts are read as YAML, as the command
    line has nothing else. Raises ConfigError that lists mistakes."""
    settings = OmegaConf.create({})
    try:
        for key, value in args.items():
            OmegaConf.update(settings, str(key), _read(value))
        return Args.model_validate(OmegaConf.to_container(settings))
    except ValidationError as error:
        problem = "; ".join(explain(error, Args))
    except (OmegaConfBaseException, YAMLError, TypeError, ValueError) as error:
        problem = str(error)
    raise ConfigError(
        f"the verifier cannot be built: {problem}",
        fix=f"known settings: {', '.join(Args.model_fields)}",
    )


def _read(value: Any) -> Any:
    return OmegaConf.from_dotlist([f"value={value}"])["value"] if isinstance(value, str) else value
