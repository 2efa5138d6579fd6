"""The words of the project as types. They cross processes, files and HTTP, so each checks itself.

A *question* has one *group* of *rollouts*; the verifier gives each rollout a *verdict*; verdicts
turn groups into *pairs*. Token ids and log-probabilities are numpy vectors: bytes in msgpack
(see `codec`), lists in JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializationInfo,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import (
    no_info_plain_validator_function,
    plain_serializer_function_ser_schema,
)


@dataclass(frozen=True, slots=True)
class _Vector:
    """Tells pydantic how a one-dimensional little-endian numpy array travels."""

    dtype: str
    item: Literal["integer", "number"]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        dump = plain_serializer_function_ser_schema(self._dump, info_arg=True)
        return no_info_plain_validator_function(self._load, serialization=dump)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "array", "items": {"type": self.item}}

    def _load(self, value: Any) -> np.ndarray:
        if isinstance(value, bytes | bytearray | memoryview):
            return np.frombuffer(value, dtype=self.dtype)
        array = np.asarray(value)
        if array.dtype == self.dtype and array.ndim == 1 and array.flags.c_contiguous:
            return array
        if array.size and array.dtype.kind not in ("iu" if self.item == "integer" else "iuf"):
            raise ValueError(f"expected a list of {self.item}s, got {array.dtype}")
        if array.ndim != 1:
            raise ValueError(f"expected one dimension, got shape {array.shape}")
        return np.ascontiguousarray(array, dtype=self.dtype)

    def _dump(self, value: np.ndarray, info: SerializationInfo) -> Any:
        if info.mode == "json":
            return value.tolist()
        return value.astype(self.dtype, copy=False).tobytes()


TokenIds = Annotated[np.ndarray, _Vector("<i4", "integer")]
LogProbs = Annotated[np.ndarray, _Vector("<f4", "number")]


class Record(BaseModel):
    """Immutable, closed (an unknown field is an error), comparable by value."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class Kind(StrEnum):
    """How an answer is compared with the gold one."""

    CHOICE = "choice"
    NUMERIC = "numeric"
    MATH = "math"


class Question(Record):
    """One row of a data set. A video, or images, or text alone."""

    id: str = Field(min_length=1)
    text: str = Field(min_length=1, description="the question itself, without its options")
    kind: Kind
    gold: str = Field(min_length=1, description="option letter, number, or LaTeX")
    options: tuple[str, ...] = Field((), description="option texts in order, without letters")
    video: str | None = Field(None, description="path of the video file")
    images: tuple[str, ...] = ()
    source: str = Field("", description="which data set or task it came from")
    demonstration: str | None = Field(None, description="a full response to imitate (sft only)")


class Rollout(Record):
    """One sampled response.

    token_ids [R] int32 include the stop token; logprobs [R] float32 are those of the sampling
    distribution (temperature and banned tokens applied).
    """

    text: str
    token_ids: TokenIds
    logprobs: LogProbs
    finish_reason: Literal["stop", "length"]
    policy_version: int = Field(ge=0)


class Reward(Record):
    """r = accuracy + format; accuracy in [0, 1], format in {0, 0.5} (VerIPO, section 3.1)."""

    accuracy: float = Field(ge=0, le=1)
    format: float = Field(ge=0, le=0.5)

    @property
    def total(self) -> float:
        return self.accuracy + self.format


class Group(Record):
    """One question and its G rollouts: the unit of sampling, learning, verification and storage.

    prompt_ids [P] int32 have every media placeholder already expanded to one id a feature row.
    """

    id: str = Field(min_length=1)
    question: Question
    prompt_ids: TokenIds
    rollouts: tuple[Rollout, ...]
    rewards: tuple[Reward, ...] = ()


CHECKS = ("format", "accuracy", "length", "repetition", "reflection", "consistency")
CheckName = Literal["format", "accuracy", "length", "repetition", "reflection", "consistency"]


class Span(Record):
    """Characters [start, end) of the response that a check points at."""

    start: int = Field(ge=0)
    end: int = Field(ge=0)


class Check(Record):
    """The result of one check. `passed` is None when it does not apply or could not decide;
    in the second case `error` says why. An error is never a score of 0."""

    name: CheckName
    passed: bool | None
    value: float | None = Field(None, description="accuracy, repeated share, think tokens, ...")
    reason: str
    evidence: tuple[Span, ...] = ()
    error: str | None = None


class Verdict(Record):
    """What the verifier says of one response: a check each, with its reason, or an error."""

    checks: tuple[Check, ...]

    def __getitem__(self, name: CheckName) -> Check:
        return next(check for check in self.checks if check.name == name)

    @property
    def error(self) -> str | None:
        """The first check's error, or None when every check was decided."""
        return next((f"{c.name}: {c.error}" for c in self.checks if c.error), None)

    @property
    def correct(self) -> bool | None:
        return self["accuracy"].passed

    @property
    def consistent(self) -> bool | None:
        return self["consistency"].passed

    @property
    def clean(self) -> bool:
        """Well formed, of reasonable length and free of repetition."""
        return all(self[name].passed is True for name in ("format", "length", "repetition"))


class JudgedGroup(Record):
    """Verdicts of one group's rollouts, in order. `error` masks the whole group."""

    group_id: str
    verdicts: tuple[Verdict, ...] = ()
    error: str | None = None


class Family(StrEnum):
    """Why the chosen response of a pair is preferred (method section 2)."""

    ACCURACY = "accuracy"
    PENALTY = "penalty"
    CONSISTENCY = "consistency"
    REFLECTION = "reflection"
    LONGER = "longer"


class Response(Record):
    """One side of a pair. `rollout` is its index in the group, None when it was edited."""

    text: str
    token_ids: TokenIds
    rollout: int | None = None
    verdict: Verdict
    reference_logprob: float | None = Field(
        None, description="sum over the response's tokens under the reference policy"
    )


class Pair(Record):
    """A group of two: the learner treats it with the same code."""

    id: str = Field(min_length=1, description="a digest of question, family and both token lists")
    group_id: str
    question: Question
    prompt_ids: TokenIds
    family: Family
    chosen: Response
    rejected: Response
    explanation: str = Field(description="one sentence: why this side is preferred")
