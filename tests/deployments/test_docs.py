"""The OpenAPI document is valid, complete and true: its examples work, replies are as it says."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI
from jsonschema import Draft202012Validator

from veripo_ray.verifier.bodies import JSON, MSGPACK, NDJSON

ROUTES = ("/v1/verify", "/v1/pairs", "/v1/score", "/get_reward")


@pytest.fixture
def document(local) -> dict[str, Any]:
    reply = local().get("/openapi.json")
    assert reply.status_code == 200
    return reply.json()


def check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """As JSON Schema 2020-12, which is what OpenAPI 3.1 uses."""
    Draft202012Validator(schema | {"components": document["components"]}).validate(value)


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [ref for value in node.values() for ref in references(value)]
    return [ref for value in node for ref in references(value)] if isinstance(node, list) else []


def test_the_document_is_valid_and_refers_to_nothing_that_is_not_there(document):
    assert OpenAPI.model_validate(document).openapi.startswith("3.1")
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    assert {ref.removeprefix("#/components/schemas/") for ref in references(document)} <= set(
        schemas
    )


@pytest.mark.parametrize("path", ROUTES)
def test_examples_are_as_their_schema_says_and_are_answered_as_it_says(local, document, path):
    route = document["paths"][path]["post"]
    body = route["requestBody"]["content"][JSON]
    check(document, body["schema"], body["example"])
    reply = local().post(path, body["example"])
    assert reply.status_code == 200, reply.text
    check(document, route["responses"]["200"]["content"][JSON]["schema"], reply.json())


@pytest.mark.parametrize("path", ROUTES)
def test_every_format_and_refusal_is_told(document, path):
    route = document["paths"][path]["post"]
    assert route["requestBody"]["content"].keys() == {JSON, MSGPACK}
    formats = route["responses"]["200"]["content"].keys()
    assert formats == {JSON, MSGPACK} | ({NDJSON} if path == "/v1/verify" else set())
    statuses = {200, 400, 401, 413, 415, 429, 504}
    statuses |= {422, 503} if path == "/get_reward" else set()
    assert {int(status) for status in route["responses"]} == statuses
    assert route["security"] == [{"HTTPBearer": []}]


def test_health_is_open(document):
    assert "security" not in document["paths"]["/healthz"]["get"]


def test_info_is_as_its_schema_says(local, document):
    schema = document["paths"]["/v1/info"]["get"]["responses"]["200"]["content"][JSON]["schema"]
    check(document, schema, local().get("/v1/info").json())
