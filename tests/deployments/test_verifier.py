"""The verifier on a real Ray Serve, over HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import ray
import yaml

from deployments import auth, serving, verifier
from deployments.settings import Args
from veripo_ray import config
from veripo_ray.errors import ConfigError, ResourceError
from veripo_ray.records import Kind
from veripo_ray.verifier import wire
from veripo_ray.verifier.client import TOKEN_ENV, VerifierClient
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.shapes import Label, Rollouts
from veripo_ray.verifier.verify import Item, verify

CHAIN = "f1 red 1 f2 blue 1 f3 red 2"
GOOD = Item(
    kind=Kind.NUMERIC, gold="2", response=f"<think> {CHAIN} so 2 </think> <answer> 2 </answer>"
)
WAVERING = GOOD.model_copy(update={"response": GOOD.response.replace("so 2", "so 3")})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def url(ray_session: str, tiny_checkpoint: Path) -> Iterator[str]:
    cfg = config.Verifier(
        port=free_port(), max_body_mb=0.25, checks=config.Checks(min_think_tokens=4)
    )
    address = verifier.start(cfg, str(tiny_checkpoint), heldout="tinyworld")
    verifier.wait(address)
    yield address
    verifier.stop()


def test_verdicts_are_those_of_the_library(url):
    checks = config.Checks(min_think_tokens=4)
    expected = verify([GOOD, WAVERING], Rules(), checks)
    assert VerifierClient(url, 30).verify([GOOD, WAVERING]) == expected
    assert asyncio.run(VerifierClient(url, 30).averify([GOOD, WAVERING])) == expected
    assert (expected[0].consistent, expected[1].consistent) == (True, False)


def test_a_person_with_curl_reads_what_is_wrong(url):
    rows = [WAVERING.model_dump(mode="json"), {"kind": "essay"}, GOOD.model_dump(mode="json")]
    reply = httpx.post(f"{url}/v1/verify", json={"items": rows}, timeout=30)
    wavering, bad, good = reply.json()["verdicts"]
    assert wavering["checks"][5]["reason"] == (
        "the thinking concludes '3', which contradicts the answer '2'"
    )
    assert "kind" in bad["checks"][0]["error"]
    assert all(check["passed"] is not False for check in good["checks"])


@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (b"{", wire.JSON, 400),
        (b"\xdd\xff\xff\xff\xff", wire.MSGPACK, 413),
        (b'{"items": [' + b"[]," * 50_000 + b"[]]}", wire.JSON, 413),
        (b"x" * 2**20, wire.JSON, 413),
        (b"x", "text/html", 415),
    ],
)
def test_bad_bodies_are_refused_and_the_replica_lives_on(url, body, media_type, status):
    headers = {"content-type": media_type}
    assert httpx.post(f"{url}/v1/verify", content=body, headers=headers).status_code == status
    assert httpx.get(f"{url}/healthz").json()["status"] == "ok"


def test_an_endless_body_is_cut_off(url):
    chunks = (b"x" * 65_536 for _ in range(200))
    reply = httpx.post(f"{url}/v1/verify", content=chunks, timeout=30)
    assert reply.status_code == 413


def test_the_held_out_judge_is_asked_by_name(url):
    prose = GOOD.model_copy(update={"response": "<think> I see red, blue, red: so red is seen 2 "
                                    "times. </think> <answer> 2 </answer>"})  # fmt: skip
    (curating,) = VerifierClient(url, 30).verify([prose])
    (heldout,) = VerifierClient(url, 30, judge="heldout").verify([prose])
    assert curating.consistent is True
    assert "tiny world" in heldout["consistency"].reason


def test_streams_scores_pairs_and_info_come_over_one_connection(url):
    items = [GOOD.model_copy(update={"gold": str(n % 4)}) for n in range(300)]
    asked = Rollouts(
        question_id="q", question="How many?", kind=Kind.NUMERIC, gold="2",
        responses=(GOOD.response, GOOD.response.replace(" 2 <", " 3 <")),
    )  # fmt: skip
    with VerifierClient(url, 60) as client:
        streamed = dict(client.stream(items))
        assert [streamed[n].correct for n in range(300)] == [n % 4 == 2 for n in range(300)]
        label = Label(gold="2", kind=Kind.NUMERIC)
        assert [s.score for s in client.score(label, [GOOD.response])] == [1.5]
        (result,) = client.pairs([asked], seed=1)
        assert result.pairs
        assert client.info().heldout == "tinyworld"


def test_the_document_is_served_under_the_applications_own_route(url):
    document = httpx.get(f"{url}/openapi.json").json()
    assert "/v1/verify" in document["paths"]
    prefix = httpx.URL(url).path
    assert document.get("servers", [{"url": prefix}])[0]["url"] == prefix
    assert f"{prefix}/openapi.json" in httpx.get(f"{url}/docs").text


def test_a_request_keeps_its_id_once(url):
    reply = httpx.get(f"{url}/v1/info", headers={"x-request-id": "run-7"})
    assert [v for k, v in reply.headers.multi_items() if k == "x-request-id"] == ["run-7"]


def test_many_clients_at_once_each_get_their_own_verdicts(url):
    def ask(number: int) -> bool:
        items = [GOOD.model_copy(update={"gold": str(number)})] * 20
        return all(v.correct is (number == 2) for v in VerifierClient(url, 60).verify(items))

    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(ask, range(16)))


def test_every_process_of_the_cluster_knows_whom_the_endpoint_listens_to(url):
    bound = ray.remote(num_cpus=0)(lambda: serving.bound_host(config.Verifier(host="0.0.0.0")))
    assert ray.get(bound.remote()) == "127.0.0.1"


def test_others_are_let_in_only_with_a_token_or_on_purpose(monkeypatch):
    monkeypatch.delenv(TOKEN_ENV, raising=False)
    assert auth.token(Args(), "127.0.0.1") is None
    assert auth.token(Args(allow_unauthenticated=True), "0.0.0.0") is None
    with pytest.raises(ConfigError, match=f"0.0.0.0, but .* {TOKEN_ENV} is not set") as caught:
        auth.token(Args(), "0.0.0.0")
    assert "allow_unauthenticated=true" in caught.value.fix
    monkeypatch.setenv(TOKEN_ENV, "short")
    with pytest.raises(ConfigError, match="no token of 16"):
        auth.token(Args(), "0.0.0.0")
    monkeypatch.setenv(TOKEN_ENV, "a token that is long enough")
    assert auth.token(Args(), "0.0.0.0") == "a token that is long enough"
    assert auth.token(Args(), "127.0.0.1") is None
    with pytest.raises(ConfigError, match="VERIPO_OTHER is not set"):
        auth.token(Args(token_env="VERIPO_OTHER"), "127.0.0.1")


def test_a_run_does_not_start_where_others_can_ask_without_a_token(monkeypatch, ray_session):
    monkeypatch.delenv(TOKEN_ENV, raising=False)
    monkeypatch.setattr(serving, "_running_address", lambda: None)
    with pytest.raises(ConfigError, match=TOKEN_ENV):
        verifier.start(config.Verifier(host="0.0.0.0"))


def test_replicas_follow_the_load_within_the_settings():
    scaled = verifier._scale(Args(replicas=2, max_replicas=6, target_ongoing=4))
    scaling = scaled["autoscaling_config"]
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 6)
    assert scaling.target_ongoing_requests == 4
    assert verifier._scale(Args(replicas=3)) == {"num_replicas": 3}


def test_a_second_start_joins_the_serve_that_is_running(url, tiny_checkpoint):
    """With the same settings, so that no replica is replaced."""
    cfg = config.Verifier(
        port=free_port(), max_body_mb=0.25, checks=config.Checks(min_think_tokens=4)
    )
    assert verifier.start(cfg, str(tiny_checkpoint), heldout="tinyworld") == url


def test_a_port_in_use_is_named_with_the_fix(ray_session):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"verifier.port = {port} on 127.0.0.1") as caught:
            serving._start_serve("127.0.0.1", port)
    assert "set verifier.port to a free one" in caught.value.fix


def test_an_address_of_another_machine_is_refused(ray_session):
    with pytest.raises(ResourceError, match="cannot be used"):
        serving._start_serve("192.0.2.1", free_port())


def test_a_replica_that_cannot_start_is_reported_and_taken_down(ray_session, url, tmp_path):
    name = serving._name() + "-broken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "_name", lambda: name)
        with pytest.raises(ResourceError, match="tokenizer"):
            verifier.wait(verifier.start(config.Verifier(), str(tmp_path)))
        from ray import serve

        assert name not in serve.status().applications


def test_the_deployment_file_says_the_defaults():
    path = Path(verifier.__file__).with_suffix(".yaml")
    (application,) = yaml.safe_load(path.read_text())["applications"]
    assert application["import_path"] == "deployments.verifier:build"
    assert Args.model_validate(application["args"]) == Args()
    assert json.dumps(application["args"])
