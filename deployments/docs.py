"""What `/docs` and `/openapi.json` say of routes whose bodies are read by hand."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from veripo_ray.records import Record
from veripo_ray.verifier.bodies import JSON, MSGPACK, NDJSON
from veripo_ray.verifier.shapes import (
    PairsRequest,
    Refused,
    RewardRequest,
    ScoreRequest,
    VerdictLine,
    VerifyRequest,
)

DESCRIPTION = """
Says what is wrong with a chain of thought: its format, whether the answer is right, the length of
the thinking, repetition, reflection, and whether the answer follows from the thinking.

Bodies are JSON or msgpack by `content-type`, replies by `accept`. A bad item gets an error of its
own; what could not be decided is never scored 0. Every refusal is `{"error": ..., "fix": ...}`.
"""
_REF = "#/components/schemas/{model}"
_WHY = {
    400: "The request is not what this route takes.",
    401: "No token, or a wrong one.",
    413: "The body or an array in it is too large.",
    415: "The body's type is not one that is read.",
    422: "A query has no reward, and will not have one.",
    429: "Busy: try again after `retry-after` seconds.",
    503: "A query has no reward for now, since the judge failed.",
    504: "Not done in time; the work was stopped.",
}
_ALL = (400, 401, 413, 415, 429, 504)

_QUESTION = {
    "question_id": "clip-7",
    "question": "How many red cars pass?",
    "kind": "numeric",
    "gold": "3",
}
_CHAIN = "<think> Two red cars pass at first and one more at the end, so there are 3. </think>"
_GOOD, _CONTRADICTORY = f"{_CHAIN} <answer> 3 </answer>", f"{_CHAIN} <answer> 2 </answer>"
VERIFY = {
    "items": [_QUESTION | {"response": text} for text in (_GOOD, _CONTRADICTORY)],
}
PAIRS = {"questions": [_QUESTION | {"responses": [_GOOD, _CONTRADICTORY]}], "seed": 0}
SCORE = {"text_1": {"gold": "3", "kind": "numeric"}, "text_2": [_GOOD, _CONTRADICTORY]}
REWARD = {
    "query": [f"How many red cars pass? {_GOOD}"],
    "prompts": ["How many red cars pass?"],
    "labels": ['{"gold": "3", "kind": "numeric"}'],
}


def takes(
    model: type[Record], example: dict[str, Any], *refusals: int, streams: bool = False
) -> dict[str, Any]:
    """Arguments of a route: the body that it takes, an example, and what it may answer."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    formats = {
        JSON: {"schema": schema, "example": example},
        MSGPACK: {"schema": schema},
    }
    lines = {NDJSON: {"schema": {"$ref": _REF.format(model=VerdictLine.__name__)}}}
    answers: dict[int, Any] = {200: {"content": {MSGPACK: {}} | (lines if streams else {})}}
    for status in sorted({*_ALL, *refusals}):
        answers[status] = {"model": Refused, "description": _WHY[status]}
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": formats}},
        "responses": answers,
    }


def install(api: FastAPI) -> None:
    """Make the document of `api` hold the schemas of the bodies, too."""

    def document() -> dict[str, Any]:
        if api.openapi_schema is None:
            api.openapi_schema = _document(api)
        return api.openapi_schema

    api.openapi = document  # type: ignore[method-assign]


def _document(api: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=api.title,
        version=api.version,
        description=api.description,
        routes=api.routes,
        separate_input_output_schemas=False,
    )
    bodies = (VerifyRequest, PairsRequest, ScoreRequest, RewardRequest, VerdictLine)
    _, read = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(read["$defs"])
    _drop_validation_errors(document)
    return document


def _drop_validation_errors(document: dict[str, Any]) -> None:
    """FastAPI's own 422, which no route here answers."""
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for methods in document["paths"].values():
        for route in methods.values():
            if "HTTPValidationError" in str(route["responses"].get("422")):
                del route["responses"]["422"]
