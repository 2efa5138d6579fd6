"""The verifier as a Ray Serve application.

    serve run deployments.verifier:build judge=rules
    curl localhost:8000/v1/verify -H 'content-type: application/json' -d '{"items": [...]}'

The interface is in `endpoint`. Requests are bounded in number twice: in a replica (`admission`),
and in Serve's proxy where more come than the replicas' slots. Either way the answer is 429.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from deployments import auth, judge, serving, settings
from deployments.endpoint import Endpoint
from deployments.env import REPLICA_ENV
from deployments.settings import Args
from veripo_ray import config
from veripo_ray.verifier import judges
from veripo_ray.verifier.judges import Judge

_SPARE = 16  # slots of a replica for what is refused at once, and for health checks


@serve.ingress()
class _Ingress:
    """One replica. `model`: the deployment of the judge `vllm`, where one is asked."""

    def __init__(self, args: dict[str, Any], model: DeploymentHandle | None = None) -> None:
        checked = Args.model_validate(args)
        token = auth.token(checked, serving.bound_host())
        self._endpoint = Endpoint(checked, partial(_judge, checked, model), token, proxied=True)

    def __serve_build_asgi_app__(self) -> FastAPI:  # Serve's name for it
        return self._endpoint.api()


def _judge(args: Args, model: DeploymentHandle | None, name: config.JudgeName) -> Judge:
    ask = judge.ask(model, args.judges.vllm) if model is not None else None
    return judges.build(name, args.judges, vllm=ask)


_verifier = serve.deployment(_Ingress, name="Verifier")


def build(args: dict[str, Any]) -> Application:
    """The application of these settings: `deployments.settings.Args` by name."""
    checked = settings.read(args)
    deployment = _verifier.options(
        max_ongoing_requests=checked.max_requests + _SPARE,
        max_queued_requests=checked.max_queued,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        health_check_period_s=2,  # a replica that died is noticed, and replaced, as soon
        # What is at work may finish; no request takes longer than this.
        graceful_shutdown_timeout_s=checked.timeout_s + 5,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"runtime_env": {"env_vars": REPLICA_ENV}},
        logging_config=LoggingConfig(
            encoding="JSON", log_level=checked.log_level, enable_access_log=False
        ),
        **_scale(checked),
    )
    names = [checked.judge, *([checked.heldout] if checked.heldout else [])]
    if any(config.wants_vllm(name, checked.judges) for name in names):
        return deployment.bind(checked.model_dump(), judge.bind(checked.judges.vllm))
    return deployment.bind(checked.model_dump())


def _scale(args: Args) -> dict[str, Any]:
    if args.max_replicas is None:
        return {"num_replicas": args.replicas}
    scaling = AutoscalingConfig(
        min_replicas=args.replicas,
        max_replicas=args.max_replicas,
        target_ongoing_requests=args.target_ongoing,
    )
    return {"autoscaling_config": scaling}


def address(cfg: config.Verifier) -> str:
    """The URL at which what `start` deploys by these settings will answer."""
    return serving.address(cfg)


def start(
    cfg: config.Verifier,
    tokenizer: str | None = None,
    heldout: config.JudgeName | None = None,
) -> str:
    """Deploy the verifier of a run on its Ray cluster; the URL at which it will answer, see `wait`.

    heldout: the judge that answers `VerifierClient(url, judge="heldout")`. Raises ResourceError,
    naming verifier.port, when that is taken, ConfigError for a judge that is not configured or a
    host that others can connect to without a token.
    """
    shared = Args.model_fields.keys() & config.Verifier.model_fields.keys()
    args = cfg.model_dump(include=set(shared))
    args |= {"tokenizer": tokenizer, "heldout": heldout, "log_level": "WARNING"}
    auth.token(settings.read(args), serving.bound_host(cfg))
    return serving.start(build(args), cfg)


def wait(url: str) -> None:
    """Return once what `start` deployed answers. Raises ResourceError when it cannot start."""
    serving.wait(url)


def stop() -> None:
    """Take down what this job's `start` deployed. Blocks."""
    serving.stop()


app = build({})
