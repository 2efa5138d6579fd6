"""The verifier as a Ray Serve application.

    serve run deployments.verifier:build judge=rules
    curl localhost:8000/v1/verify -H 'content-type: application/json' -d '{"items": [...]}'

The interface is in `endpoint`; here requests are bounded in number: so many at work in a replica,
so many waiting, and the rest answered with 503.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from deployments import serving, settings
from deployments.endpoint import Endpoint
from deployments.settings import Args
from veripo_ray import config


@serve.ingress()
class _Ingress:
    """One replica."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._endpoint = Endpoint(Args.model_validate(args))

    def __serve_build_asgi_app__(self) -> FastAPI:  # Serve's name for it
        return self._endpoint.api()


_verifier = serve.deployment(_Ingress, name="Verifier")


def build(args: dict[str, Any]) -> Application:
    """The application of these settings: `deployments.settings.Args` by name."""
    checked = settings.read(args)
    deployment = _verifier.options(
        num_replicas=checked.replicas,
        max_ongoing_requests=checked.max_ongoing,
        max_queued_requests=checked.max_queued,
        graceful_shutdown_timeout_s=5,
    )
    return deployment.bind(checked.model_dump())


def start(cfg: config.Verifier, tokenizer: str | None = None) -> str:
    """Deploy the verifier of a run on its Ray cluster; the URL, once it answers. Blocks.

    Raises ResourceError, naming verifier.port, when that is taken.
    """
    shared = Args.model_fields.keys() & config.Verifier.model_fields.keys()
    args = cfg.model_dump(include=set(shared)) | {"tokenizer": tokenizer}
    return serving.start(build(args), cfg)


def stop() -> None:
    """Take down what this job's `start` deployed. Blocks."""
    serving.stop()


app = build({})
