"""Verdicts by a judge in this process or by a running verifier, through one call."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator

from veripo_ray import config
from veripo_ray.records import Verdict
from veripo_ray.verifier import tokens
from veripo_ray.verifier.client import VerifierClient
from veripo_ray.verifier.judges import by_name
from veripo_ray.verifier.verify import Item, verify


class Source(config.Settings):
    """Who gives verdicts. With a `url` that verifier's own judge, checks and tokenizer count."""

    url: str | None = Field(None, description="of a running verifier; None: judge in this process")
    judge: config.JudgeName = "rules"
    judges: config.Judges = config.Judges()
    checks: config.Checks = config.Checks()
    tokenizer: str | None = Field(None, description="checkpoint folder; None counts words")
    timeout_s: config.Positive = Field(60.0, description="of a request to `url`, retries included")

    @model_validator(mode="after")
    def _judge_works(self) -> Source:
        if self.url is None and (problems := config.judge_problems(self.judge, self.judges)):
            raise ValueError("; ".join(problems))
        return self


class Verdicts:
    """One verdict an item, in order. An item's own error comes back inside its verdict.

    Raises ConfigError for a judge that cannot be built here, CheckpointError for a folder without a
    tokenizer, and what `VerifierClient` raises for a verifier that cannot be reached.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._client = VerifierClient(source.url, source.timeout_s) if source.url else None
        self._judge = None if source.url else by_name.build(source.judge, source.judges)
        self._count_tokens = tokens.counter(source.tokenizer)

    def __call__(self, items: Sequence[Item]) -> list[Verdict]:
        if self._judge is not None:
            return verify(items, self._judge, self._source.checks, self._count_tokens)
        assert self._client is not None
        return self._client.verify(items)

    def checks(self) -> config.Checks:
        """The thresholds that verdicts go by."""
        if self._client is None:
            return self._source.checks
        return config.Checks.model_validate(self._client.info().checks)
