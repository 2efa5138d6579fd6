"""Starts and stops the verifier beside a training run, on the Ray cluster the caller is in."""

from __future__ import annotations

import errno
import logging
import socket
import time
import urllib.error
import urllib.request
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.schema import ApplicationStatus, LoggingConfig

from veripo_ray import config
from veripo_ray.errors import ResourceError

START_S = 120.0
_HEAD = "node:__internal_head__"  # a resource that the head node alone has
_FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


def address(cfg: config.Verifier) -> str:
    """The URL at which an application that `start` deploys will answer."""
    host, port = _running_address() or (cfg.host, cfg.port)
    return f"http://{_reachable(host)}:{port}/{_name()}"


def start(app: Application, cfg: config.Verifier) -> str:
    """Deploy `app` and return its `address`, where it answers after `wait`.

    Serve's HTTP address belongs to the whole cluster: where a Serve is already running, the
    application joins it under its own route, at that Serve's address. Otherwise one is started at
    `cfg.host`:`cfg.port`. Raises ResourceError when the port is taken.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if _running_address() is None:
        _start_serve(cfg.host, cfg.port)
    name = _name()
    target = serve.RunTarget(app, name, f"/{name}", LoggingConfig(log_level="WARNING"))
    serve.run_many([target], wait_for_applications_running=False)
    return address(cfg)


def wait(url: str) -> None:
    """Return once the application that `start` deployed answers at `url`. Raises ResourceError when
    it cannot be deployed or nothing answers in time; it is taken down again then."""
    deadline = time.monotonic() + START_S
    try:
        _wait_until_running(_name(), deadline)
        _wait_until_healthy(url, deadline)
    except BaseException:  # a signal, too, leaves nothing behind
        stop()
        raise


def stop() -> None:
    """Take this job's application down. Serve itself stays: it belongs to the cluster, ends with
    it, and may carry the applications of others."""
    if _name() in serve.status().applications:
        serve.delete(_name())


def _name() -> str:
    """One application a job, so that two runs on a cluster do not replace each other's."""
    return f"veripo-verifier-{ray.get_runtime_context().get_job_id()}"


def bound_host(cfg: config.Verifier | None = None) -> str:
    """The host that this cluster's Serve is bound to, or will be by `cfg`."""
    running = _running_address()
    return running[0] if running else (cfg or config.Verifier()).host


def _running_address() -> tuple[str, int] | None:
    """Where this cluster's Serve listens, or None. Serve has no public way to ask."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else (client.http_config.host, client.http_config.port)


def _start_serve(host: str, port: int) -> None:
    problem = _on_head_node(_why_not_bindable, host, port)
    if problem:
        raise ResourceError(
            f"verifier.port = {port} on {host} cannot be used: {problem}",
            fix="set verifier.port to a free one, or stop what listens there",
        )
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        )
    except (RayError, RuntimeError, TimeoutError, ValueError) as error:
        raise ResourceError(
            f"Ray Serve did not start at verifier.host = {host}, verifier.port = {port}: {error}",
            fix="set verifier.port to a free one",
        ) from error


def _on_head_node(function: Any, *args: Any) -> Any:
    """Serve's proxy lives on the head node, which need not be this one."""
    heads = [node["NodeID"] for node in ray.nodes() if _HEAD in node["Resources"]]
    if ray.get_runtime_context().get_node_id() in heads:
        return function(*args)
    return ray.get(
        ray.remote(num_cpus=0, resources={_HEAD: 0.001})(function).remote(*args), timeout=60
    )


def _why_not_bindable(host: str, port: int) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()  # a listener that allows address reuse shows only here
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            return "another process listens there" if in_use else str(error)
    return ""


def _reachable(host: str) -> str:
    return ray.util.get_node_ip_address() if host in ("0.0.0.0", "::") else host


def _wait_until_running(name: str, deadline: float) -> None:
    while time.monotonic() < deadline:
        found = serve.status().applications.get(name)
        if found and found.status == ApplicationStatus.RUNNING:
            return
        if found and found.status in _FAILED:
            reasons = [d.message for d in found.deployments.values() if d.message]
            raise ResourceError(
                f"the verifier could not be deployed: {' '.join(reasons) or found.message}",
                fix="read the message above; Serve's logs are in Ray's session folder",
            )
        time.sleep(0.1)
    raise ResourceError(
        f"the verifier was not running after {START_S:g} s",
        fix="free a CPU for each of verifier.replicas, or lower it",
    )


def _wait_until_healthy(url: str, deadline: float) -> None:
    problem = ""
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            problem = str(error)
            time.sleep(0.1)
    raise ResourceError(
        f"nothing answers at {url} after {START_S:g} s: {problem}",
        fix="check that this machine reaches verifier.host and verifier.port",
    )
