"""The verifier's endpoint under load: verdicts a second and latency, beside a plain server.

    python benchmarks/verifier.py --json results.json

Requests of 128 rollouts, the quickstart's rollout batch (16 questions, eight responses each, a
hundred words a response), of 32 for the vllm judge, from 1, 16 and 64 clients, each of which sends
its next request when the last is answered. The sides take turns on the same requests, on the same
machine as the clients:

    ours    deployments.verifier on Ray Serve, --replicas of it; `vllm`: its model on Serve as well,
            --judge-replicas of it, a thread each
    plain   a FastAPI server in the shape of OpenRLHF's `serve_rm` (see _plain_verifier.py), which
            does the same checks one by one, and asks the same vLLM engine for one case at a time

Then, for the vllm judge, overload: requests come at ten times the rate that 16 clients reached,
twice, at a verifier whose `max_wait_s` is the median latency of those 16. What is not answered with
verdicts must be refused with 429; the memory of the verifier's processes, the latency of what was
accepted, and the time until every request is accepted again are told. (With `rules` the clients and
Serve's proxy would need more than the machine that the verifier itself fills.)
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import httpx
import psutil
import ray
from _common import write
from _judge_model import settings
from _judge_model import write as write_model
from _load import Body, Outcome, closed, opened

from deployments import verifier
from deployments.env import PROXY_ENV
from veripo_ray.verifier.labelled import load

GROUP = 8  # responses of a question
QUESTIONS = {"rules": 16, "vllm": 4}  # of a request
REQUESTS = {"rules": 48, "vllm": 16}  # of a round, at least two a client
CALM_CLIENTS, WARM_CLIENTS, OVERLOAD, OVERLOAD_S, GIVE_UP_S = 16, 4, 10, 10.0, 60.0
START_S = 180.0
SIDES = ("ours", "plain")


def main() -> None:
    args = _arguments()
    rows: list[dict[str, Any]] = []
    os.environ.update(PROXY_ENV)  # as a run and the manifests do
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder))
            for judge in args.judges:
                rows += _measure(judge, folder, args)
                counts = {n: getattr(args, n) for n in ("replicas", "judge_replicas")}
                write(args.json, "verifier", rows, **counts)
    finally:
        ray.shutdown()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judges", nargs="+", choices=("rules", "vllm"), default=["rules", "vllm"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--judge-replicas", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _measure(judge: str, folder: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    checkpoint = folder if judge == "vllm" else None
    with _ours(judge, folder, args) as ours, _plain(checkpoint) as plain:
        _print_head(judge)
        urls = {"ours": ours, "plain": plain}
        rows = [_throughput(judge, urls, clients, args.rounds) for clients in args.clients]
        if judge == "rules":  # what it can take, ten times over, no client here can send
            return rows
        calm = closed(ours, _some("ours", judge, 98, 4 * REQUESTS[judge]), CALM_CLIENTS)
    wait_s = round(calm.percentile_ms(50) / 1e3, 2)
    with _ours(judge, folder, args, max_wait_s=wait_s) as ours:
        return [*rows, _overload(judge, ours, calm) | {"max_wait_s": wait_s}]


# --- throughput


def _throughput(judge: str, urls: dict[str, str], clients: int, rounds: int) -> dict[str, Any]:
    """Rates and latencies are medians over the rounds; the ratio is that of each round."""
    outcomes: dict[str, list[Outcome]] = {side: [] for side in SIDES}
    count = max(REQUESTS[judge], 2 * clients)
    for number, side in itertools.product(range(rounds + 1), SIDES):
        bodies = _some(side, judge, number, count if number else 4)
        outcome = closed(urls[side], bodies, clients)
        if set(outcome.statuses) != {200}:
            raise SystemExit(f"{side} answered {dict(outcome.statuses)} to {clients} clients")
        if number:  # the first round warms up
            outcomes[side].append(outcome)
    pairs = zip(outcomes["ours"], outcomes["plain"], strict=True)
    row = {
        "judge": judge,
        "clients": clients,
        "items": GROUP * QUESTIONS[judge],
        "verdicts_per_second": _medians(outcomes, lambda outcome: outcome.rate),
        "p50_ms": _medians(outcomes, lambda outcome: outcome.percentile_ms(50)),
        "p99_ms": _medians(outcomes, lambda outcome: outcome.percentile_ms(99)),
        "ratio": round(statistics.median(own.rate / other.rate for own, other in pairs), 2),
    }
    _print_row(row)
    return row


def _medians(
    outcomes: dict[str, list[Outcome]], figure: Callable[[Outcome], float]
) -> dict[str, float]:
    return {side: round(statistics.median(map(figure, of)), 1) for side, of in outcomes.items()}


# --- overload


def _overload(judge: str, url: str, calm: Outcome) -> dict[str, Any]:
    """Twice a flood of ten times the calm rate, and the time until it takes that rate again.
    Requests are those of the throughput, one after the other seed."""
    bodies = _bodies("ours", judge, 99)
    per_second = calm.rate / (GROUP * QUESTIONS[judge])
    closed(url, list(itertools.islice(bodies, REQUESTS[judge])), WARM_CLIENTS)
    memory, floods = [_resident_mb()], []
    for _ in range(2):
        flood = list(itertools.islice(bodies, round(OVERLOAD * OVERLOAD_S * per_second)))
        floods.append(opened(url, flood, OVERLOAD * per_second))
        memory.append(_resident_mb())
    recovered = _recovery(judge, url, per_second)
    for outcome in floods:
        if set(outcome.statuses) - {200, 429}:
            raise SystemExit(f"overload was answered with {dict(outcome.statuses)}")
    row = {
        "judge": judge,
        "calm_requests_per_second": round(per_second, 1),
        "sent": [outcome.statuses.total() for outcome in floods],
        "accepted": [outcome.statuses[200] for outcome in floods],
        "refused": [outcome.statuses[429] for outcome in floods],
        "verdicts_per_second": [round(o.rate) for o in (calm, *floods)],
        "p99_ms": [round(o.percentile_ms(99)) for o in (calm, *floods)],
        "resident_mb": memory,
        "recovery_seconds": recovered,
    }
    _print_overload(row)
    return row


def _recovery(judge: str, url: str, per_second: float) -> float:
    """Seconds until a second of half the calm rate is accepted whole."""
    started, number = time.perf_counter(), 200
    while time.perf_counter() - started < GIVE_UP_S:
        few = _some("ours", judge, number, max(2, round(per_second / 2)))
        at, number = time.perf_counter() - started, number + 1
        if set(opened(url, few, per_second / 2).statuses) == {200}:
            return round(at, 1)
    raise SystemExit(f"requests are still refused {GIVE_UP_S:g} s after the overload")


def _resident_mb() -> dict[str, int]:
    """Unique memory of this Ray's processes: Serve's proxy with the verifier's replicas, and the
    judge's model, whose cache of keys and values fills up to its `kv_cache_gb`."""
    found = {"verifier": 0, "judge": 0}
    for process in psutil.Process().children(recursive=True):
        try:
            title = process.cmdline()[0]
            name = "judge" if title.endswith(":Judge") else "verifier"
            if title.startswith(("ray::ServeReplica", "ray::ProxyActor")):
                found[name] += process.memory_full_info().uss >> 20
        except (psutil.Error, IndexError):
            continue
    return found


# --- requests


def _some(side: str, judge: str, seed: int, count: int) -> list[Body]:
    return list(itertools.islice(_bodies(side, judge, seed), count))


def _bodies(side: str, judge: str, seed: int) -> Iterator[Body]:
    """Endless different requests; the same for both sides, each in its own shape."""
    cases = [case for case in load("video_qa") if case.kind != "math"]
    count = QUESTIONS[judge]
    for number in itertools.count(1000 * seed):
        few = [cases[(count * number + q) % len(cases)] for q in range(count)]
        rows = [_row(case, f"{number}.{r}") for case in few for r in range(GROUP)]
        yield Body(json.dumps(_SHAPES[side](rows)).encode(), len(rows))


def _row(case: Any, mark: str) -> dict[str, Any]:
    """One response; `mark` makes it a text that no cache has seen."""
    gold = case.answer.strip(" $.") if case.kind == "numeric" else case.answer.strip(" $(")[:1]
    return {
        "question": case.question,
        "kind": case.kind,
        "gold": gold,
        "options": list(case.options),
        "response": f"<think>View {mark}. {case.thinking}</think> <answer>{case.answer}</answer>",
    }


def _as_items(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"items": list(rows)}


def _as_queries(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    label = ("kind", "gold", "options")
    return {
        "query": [row["response"] for row in rows],
        "prompts": [row["question"] for row in rows],
        "labels": [json.dumps({name: row[name] for name in label}) for row in rows],
    }


_SHAPES = {"ours": _as_items, "plain": _as_queries}


# --- servers


@contextmanager
def _ours(
    judge: str, checkpoint: str, counts: argparse.Namespace, **limits: float
) -> Iterator[str]:
    from ray import serve

    port = _free_port()
    judges = settings(checkpoint).model_dump(mode="json")
    judges["vllm"]["replicas"] = counts.judge_replicas
    args = {
        "judge": judge,
        "replicas": counts.replicas,
        "judges": judges,
        "log_level": "WARNING",
        **limits,
    }
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(verifier.build(args), name="benchmark", route_prefix="/")
    try:
        yield f"http://127.0.0.1:{port}/v1/verify"
    finally:
        serve.shutdown()


@contextmanager
def _plain(checkpoint: str | None) -> Iterator[str]:
    port, script = _free_port(), Path(__file__).with_name("_plain_verifier.py")
    command = [sys.executable, str(script), str(port), *([checkpoint] if checkpoint else [])]
    with subprocess.Popen(command) as server:
        try:
            _wait_for(f"http://127.0.0.1:{port}/healthz", server)
            yield f"http://127.0.0.1:{port}/get_reward"
        finally:
            server.terminate()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            httpx.get(url)
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit("the plain server did not start")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- what is printed


def _print_head(judge: str) -> None:
    print(f"\njudge {judge}: requests of {GROUP * QUESTIONS[judge]} rollouts")
    columns = ("verdicts/s", "p50 ms", "p99 ms")
    head = "".join(f"{side + ' ' + column:>18}" for column in columns for side in SIDES)
    print(f"{'clients':>8}{head}{'ratio':>8}", flush=True)


def _print_row(row: dict[str, Any]) -> None:
    figures = (row["verdicts_per_second"], row["p50_ms"], row["p99_ms"])
    cells = "".join(f"{figure[side]:>18.1f}" for figure in figures for side in SIDES)
    print(f"{row['clients']:>8}{cells}{row['ratio']:>8.2f}", flush=True)


def _print_overload(row: dict[str, Any]) -> None:
    print(
        f"overload, {OVERLOAD} times {row['calm_requests_per_second']} requests/s, twice: sent "
        f"{row['sent']}, accepted {row['accepted']}, refused with 429 {row['refused']}; calm and "
        f"flooded: verdicts/s {row['verdicts_per_second']}, p99 ms {row['p99_ms']}; memory MB "
        f"{row['resident_mb']}; accepted whole again after {row['recovery_seconds']} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
