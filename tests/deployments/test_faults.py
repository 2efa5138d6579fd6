"""What goes wrong around the endpoint, on a real Serve: a judge that is down, slow or talks
garbage, a client that goes, a replica that is killed, overload, a shutdown in mid-work.

One deployment for all, whose judge is a server of this test.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from deployments import verifier
from veripo_ray.records import Kind
from veripo_ray.verifier.client import VerifierClient
from veripo_ray.verifier.verify import Item

NAME = "faults"
YES = {"choices": [{"message": {"role": "assistant", "content": "yes"}}]}
ITEM = Item(
    kind=Kind.NUMERIC, gold="2", response="<think> so there are 2 </think> <answer> 2 </answer>"
)


class JudgeServer(ThreadingHTTPServer):
    """An OpenAI-compatible server that says yes. `mood`: "well", "garbage" or "down"; while `open`
    is not set, it keeps every request waiting."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.mood, self.asked, self.open = "well", 0, threading.Event()
        self.open.set()

    def handle_error(self, *_: Any) -> None:
        """Whoever asked has gone."""

    def until_asked(self, cases: int) -> None:
        limit = time.monotonic() + 60
        while self.asked < cases:
            assert time.monotonic() < limit, f"the judge was asked {self.asked} cases"
            time.sleep(0.01)


class _Answers(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked += 1
        self.server.open.wait(60)
        body = b"<html>" if self.server.mood == "garbage" else json.dumps(YES).encode()
        self.send_response(503 if self.server.mood == "down" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def judge() -> Iterator[JudgeServer]:
    with JudgeServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.open.set()
        server.shutdown()


@pytest.fixture(scope="module")
def app(ray_session: str, judge: JudgeServer) -> dict[str, Any]:
    return {
        "judge": "openai",
        "judges.openai.url": f"http://127.0.0.1:{judge.server_port}/v1",
        "judges.openai.model": "yes-man",
        "judges.openai.logprobs": False,
        "judges.openai.attempts": 1,
        "judges.openai.timeout_s": 2,
        "judges.openai.breaker_failures": 12,
        "judges.openai.breaker_pause_s": 0.5,
        "max_requests": 4,
        "max_queued": 8,
        "timeout_s": 30,
    }


@pytest.fixture(scope="module")
def url(serve_address: tuple[str, int], app: dict[str, Any]) -> Iterator[str]:
    host, port = serve_address
    serve.run(verifier.build(app), name=NAME, route_prefix=f"/{NAME}")
    yield f"http://{host}:{port}/{NAME}"
    if NAME in serve.status().applications:
        serve.delete(NAME)


@pytest.fixture(autouse=True)
def _well(judge: JudgeServer) -> Iterator[None]:
    judge.mood, judge.asked = "well", 0
    judge.open.set()
    yield
    judge.open.set()


def items(count: int) -> list[Item]:
    """Every third one is right."""
    return [ITEM.model_copy(update={"gold": str(2 + n % 3)}) for n in range(count)]


def test_a_judge_that_talks_garbage_is_an_error_of_the_items_alone(url, judge):
    judge.mood = "garbage"
    verdicts = VerifierClient(url, 30).verify(items(6))
    assert [verdict.correct for verdict in verdicts] == [n % 3 == 0 for n in range(6)]
    assert all(verdict.consistent is None for verdict in verdicts)
    assert all("no chat completion" in verdict["consistency"].error for verdict in verdicts)
    judge.mood = "well"
    assert all(verdict.consistent for verdict in VerifierClient(url, 30).verify(items(6)))


def test_a_judge_that_is_slow_is_an_error_after_its_time(url, judge):
    judge.open.clear()
    (verdict,) = VerifierClient(url, 30).verify(items(1))
    assert "judges.openai.timeout_s" in verdict["consistency"].error
    assert verdict.correct is True


def test_a_judge_that_is_down_is_left_alone_and_asked_again_when_it_is_back(url, judge):
    client = VerifierClient(url, 30)
    judge.mood = "down"
    assert all(v["consistency"].error for v in client.verify(items(40)))
    assert client.info().breakers == {"openai": "open"}
    assert judge.asked < 40
    judge.mood = "well"
    limit = time.monotonic() + 30
    while client.verify(items(1))[0].error:
        assert time.monotonic() < limit
        time.sleep(0.1)
    assert client.info().breakers == {"openai": "closed"}


def test_more_than_it_takes_is_refused_with_when_to_come_back_and_the_rest_finish(url, judge):
    judge.open.clear()
    body = {"items": [ITEM.model_dump(mode="json")]}
    with ThreadPoolExecutor(40) as clients:
        asking = [
            clients.submit(httpx.post, f"{url}/v1/verify", json=body, timeout=60) for _ in range(40)
        ]
        judge.until_asked(4)
        refused = _done(asking, 36)
        assert httpx.get(f"{url}/healthz", timeout=30).status_code == 200
        judge.open.set()
        replies = [task.result() for task in asking]
    assert Counter(reply.status_code for reply in replies) == {429: 36, 200: 4}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
    assert VerifierClient(url, 30).verify(items(1))[0].consistent is True


def _done(asking: list[Any], count: int) -> list[httpx.Response]:
    limit = time.monotonic() + 60
    while sum(task.done() for task in asking) < count:
        assert time.monotonic() < limit
        time.sleep(0.01)
    return [task.result() for task in asking if task.done()]


def test_patient_clients_all_get_their_verdicts_through_an_overload(url):
    async def ask(number: int) -> bool:
        async with VerifierClient(url, 60, batch=16) as client:
            verdicts = await client.averify(items(32 + number))
        return [v.correct for v in verdicts] == [n % 3 == 0 for n in range(32 + number)]

    async def all_at_once() -> list[bool]:
        return await asyncio.gather(*[ask(number) for number in range(12)])

    assert all(asyncio.run(all_at_once()))


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_work_for_a_client_that_has_gone_stops(url, judge, accept):
    judge.open.clear()
    rows = [item.model_dump(mode="json") for item in items(600)]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{url}/v1/verify", json={"items": rows}, headers={"accept": accept}, timeout=1.0
        )
    limit = time.monotonic() + 30
    while VerifierClient(url, 30).info().at_work != {"requests": 0, "items": 0}:
        assert time.monotonic() < limit
        time.sleep(0.05)
    judge.open.set()
    assert 0 < judge.asked < 200


def replicas() -> list[Any]:
    """The endpoint's replicas. Serve has no public way to ask."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    names = [actor["name"] for actor in actors if f"::{NAME}#Verifier#" in actor["name"]]
    return [ray.get_actor(name, namespace="serve") for name in names]


@pytest.mark.parametrize("stream", [False, True])
def test_a_replica_that_is_killed_in_mid_batch_costs_no_verdict_and_doubles_none(
    url, judge, stream
):
    wanted = items(300)
    client = VerifierClient(url, 120, batch=300)
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(
            lambda: list(client.stream(wanted) if stream else enumerate(client.verify(wanted)))
        )
        victims = replicas()
        judge.until_asked(100)  # so that a stream has begun
        judge.open.clear()
        for victim in victims:
            ray.kill(victim)
        judge.open.set()
        got = asking.result()
    assert sorted(index for index, _ in got) == list(range(300))
    assert all(verdict.correct is (index % 3 == 0) for index, verdict in got)
    assert all(verdict.consistent for _, verdict in got)


def logged(request_id: str) -> list[dict[str, Any]]:
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs" / "serve"
    return [
        json.loads(line)
        for file in logs.glob("replica_*.log")
        for line in file.read_text().splitlines()
        if request_id in line
    ]


def test_requests_are_logged_as_json_and_measured(url):
    """In Ray's session folder, and at the exporter of the node."""
    httpx.post(f"{url}/v1/verify", json={"items": []}, headers={"x-request-id": "told-apart"})
    limit = time.monotonic() + 60
    while not (lines := logged("told-apart")):
        assert time.monotonic() < limit
        time.sleep(0.1)
    (line,) = lines
    assert (line["path"], line["status"], line["application"]) == ("/v1/verify", 200, NAME)

    (node,) = [node for node in ray.nodes() if node["Alive"]]
    exporter = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {
        "ray_veripo_verifier_request_seconds_bucket",
        "ray_veripo_verifier_requests_in_flight",
        "ray_veripo_verifier_items_in_flight",
        "ray_veripo_verifier_checks_total",
        "ray_veripo_verifier_judge_errors_total",
        "ray_veripo_verifier_breaker_state",
    }
    while missing := {name for name in wanted if name not in (text := httpx.get(exporter).text)}:
        assert time.monotonic() < limit, missing
        time.sleep(0.5)
    assert 'check="consistency"' in text


def test_what_is_at_work_finishes_when_the_application_is_taken_down(url, judge):
    judge.open.clear()
    with ThreadPoolExecutor(2) as threads:
        body = {"items": [ITEM.model_dump(mode="json")]}
        asking = threads.submit(httpx.post, f"{url}/v1/verify", json=body, timeout=60)
        judge.until_asked(1)
        stopping = threads.submit(serve.delete, NAME)
        time.sleep(0.5)
        judge.open.set()
        reply = asking.result()
        stopping.result()
    assert reply.status_code == 200
    assert reply.json()["verdicts"][0]["checks"][5]["passed"] is True
