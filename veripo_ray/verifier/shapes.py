"""Requests and replies of the verifier's endpoint, for both sides and for its documentation."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from veripo_ray.records import CHECKS, Family, Kind, Record, Verdict
from veripo_ray.verifier.verify import Item


class Refused(Record):
    """Every answer that is not 200."""

    error: str = Field(description="what is wrong, with the value seen")
    fix: str = Field("", description="what to do about it")


class VerifyRequest(Record):
    items: tuple[Item, ...]


class VerifyReply(Record):
    verdicts: tuple[Verdict, ...] = Field(description="one an item, in order")


class VerdictLine(Record):
    """A line of a streamed reply. Lines come as items are finished, each item once."""

    index: int = Field(ge=0, description="of the item in the request")
    verdict: Verdict


class Sampled(Record):
    """A response, and why it ended: one cut off at the token limit is never a chosen side."""

    text: str
    finish_reason: Literal["stop", "length"] = "stop"


class Rollouts(Record):
    """A question with several responses, and perhaps their verdicts from `/v1/verify`."""

    question_id: str = Field(min_length=1, max_length=1024)
    question: str = Field(min_length=1, description="the question's text")
    kind: Kind
    gold: str = Field(min_length=1)
    options: tuple[str, ...] = Field((), max_length=64)
    responses: tuple[str | Sampled, ...] = Field(max_length=64)
    verdicts: tuple[Verdict, ...] | None = Field(
        None, description="one a response, in order; absent: they are judged first"
    )

    @model_validator(mode="after")
    def _one_whole_verdict_each(self) -> Rollouts:
        if self.verdicts is None:
            return self
        if len(self.verdicts) != len(self.responses):
            raise ValueError(f"{len(self.verdicts)} verdicts for {len(self.responses)} responses")
        for index, verdict in enumerate(self.verdicts):
            names = [check.name for check in verdict.checks]
            if sorted(names) != sorted(CHECKS):
                raise ValueError(f"verdict {index} has the checks {names}, not each of {CHECKS}")
        return self


class PairsRequest(Record):
    questions: tuple[Rollouts, ...]
    seed: int = Field(0, ge=0, lt=2**63, description="the same request and seed: the same pairs")


class TextPair(Record):
    """A preference: train the chosen response up, the rejected one down."""

    id: str
    family: Family
    chosen: str
    rejected: str
    explanation: str = Field(description="one sentence: why this side is preferred")


class QuestionPairs(Record):
    """The pairs of one question. An error, of the question or of a verdict, leaves it without."""

    question_id: str
    pairs: tuple[TextPair, ...] = ()
    error: str | None = None


class PairsReply(Record):
    questions: tuple[QuestionPairs, ...] = Field(description="in the order of the request")


class Label(Record):
    """A gold answer with what it takes to compare a response with it."""

    gold: str = Field(min_length=1)
    kind: Kind | None = Field(None, description="absent: the endpoint's rewards.label_kind")
    options: tuple[str, ...] = Field((), max_length=64)
    question: str = Field("", description="for judges that read it")
    question_id: str = Field("", max_length=1024)


# A label that is a text is the gold answer itself, or a `Label` written as a JSON object.
AnyLabel = Annotated[str | int | float | Label, Field(union_mode="left_to_right")]


class ScoreRequest(Record):
    """As vLLM's Score API: one text against one, one against many, or many against as many.

    `text_1` is what a response is scored against (a gold answer or a `Label`), `text_2` the
    response; `queries` and `documents` are other names for the same.
    """

    text_1: AnyLabel | tuple[AnyLabel, ...]
    text_2: str | tuple[str, ...]
    model: str | None = Field(None, description="taken for vLLM's clients; not used")

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, value: Any) -> Any:
        names = {"queries": "text_1", "documents": "text_2"}
        if not isinstance(value, dict) or not names.keys() & value.keys():
            return value
        if names.keys() - value.keys() or {"text_1", "text_2"} & value.keys():
            raise ValueError("give text_1 and text_2, or queries and documents")
        return {names.get(key, key): field for key, field in value.items()}


class Score(Record):
    index: int
    object: Literal["score"] = "score"
    score: float | None = Field(description="null where it could not be decided, never 0")
    error: str | None = None


class Usage(Record):
    """Tokens that a language model was asked to read for scores: none."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class ScoreReply(Record):
    id: str = Field(default_factory=lambda: f"score-{uuid.uuid4().hex}")
    object: Literal["list"] = "list"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    data: tuple[Score, ...]
    usage: Usage = Usage()


class RewardRequest(Record):
    """As OpenRLHF 0.11's remote reward client sends it."""

    query: tuple[str, ...] = Field(description="each prompt with the response behind it")
    prompts: tuple[str, ...] = Field(description="the prompts alone")
    labels: tuple[AnyLabel, ...]

    @model_validator(mode="after")
    def _as_many(self) -> RewardRequest:
        queries, prompts, labels = len(self.query), len(self.prompts), len(self.labels)
        if not queries == prompts == labels:
            raise ValueError(f"{queries} queries, {prompts} prompts and {labels} labels differ")
        return self


class RewardReply(Record):
    """One number a query, in order, in every list."""

    rewards: tuple[float, ...] = Field(description="r_a + r_f, less the penalty")
    scores: tuple[float, ...] = Field(description="r_a in [0, 1]: for dynamic filtering")
    extra_logs: dict[str, tuple[float, ...]]


class Info(Record):
    """What this endpoint is and goes by."""

    versions: dict[str, str]
    judge: str
    heldout: str | None = Field(description="who answers ?judge=heldout")
    breakers: dict[str, str] = Field(
        description="state of each judge's circuit breaker; a committee's are `committee.NAME`"
    )
    checks: dict[str, Any] = Field(description="thresholds")
    judges: dict[str, Any]
    pairs: dict[str, Any]
    rewards: dict[str, Any]
    limits: dict[str, float | int | None]
    at_work: dict[str, int] = Field(description="requests and items of the replica that answers")
