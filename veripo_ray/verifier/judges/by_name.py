"""The judge that the settings name."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from veripo_ray import config
from veripo_ray.errors import ConfigError
from veripo_ray.verifier.judges.ask import Ask
from veripo_ray.verifier.judges.breaker import Breaker
from veripo_ray.verifier.judges.case import Judge
from veripo_ray.verifier.judges.committee import Committee
from veripo_ray.verifier.judges.openai import OpenAi
from veripo_ray.verifier.judges.rules import Rules
from veripo_ray.verifier.judges.tinyworld import TinyWorld
from veripo_ray.verifier.judges.yes_no import YesNo


def build(name: config.JudgeName, cfg: config.Judges, vllm: Ask | None = None) -> Judge:
    """The judge of this name. vllm: how its model is reached, for "vllm" and committees with it
    (`deployments.judge.ask`). What the judge opens, `close` closes.

    Raises ConfigError, naming every setting that is missing or cannot be used.
    """
    if problems := config.judge_problems(name, cfg):
        raise ConfigError(
            f"the judge {name!r} cannot be built: {'; '.join(problems)}",
            fix="set these in the verifier's settings, or choose the judge 'rules'",
        )
    return _build(name, cfg, vllm)


async def close(judge: Judge) -> None:
    """Close the connections that a judge holds. It may be used again, and opens new ones."""
    for part in _parts(judge):
        if isinstance(part, YesNo) and isinstance(part.ask, _Closable):
            await part.ask.aclose()


def breakers(judge: Judge) -> dict[str, Breaker]:
    """The circuit breakers of a judge, by its name, and of a committee's members, by both names:
    the held-out judge may be another of the same kind, with a breaker of its own."""
    asking = [part for part in _parts(judge) if isinstance(part, YesNo)]
    whose = {part: part.name if part is judge else f"{judge.name}.{part.name}" for part in asking}
    return {whose[part]: part.ask.breaker for part in asking if isinstance(part.ask, OpenAi)}


@runtime_checkable
class _Closable(Protocol):
    async def aclose(self) -> None: ...


def _parts(judge: Judge) -> tuple[Judge, ...]:
    return judge.members if isinstance(judge, Committee) else (judge,)


def _build(name: config.JudgeName, cfg: config.Judges, vllm: Ask | None) -> Judge:
    match name:
        case "rules":
            return Rules()
        case "tinyworld":
            return TinyWorld()
        case "openai":
            return YesNo(name, OpenAi(cfg.openai), cfg.openai)
        case "vllm":
            return YesNo(name, _served(vllm), cfg.vllm)
        case "committee":
            members = [_build(member, cfg, vllm) for member in cfg.committee.members]
            return Committee(members, cfg.committee.rule)


def _served(vllm: Ask | None) -> Ask:
    if vllm is None:
        raise ConfigError(
            "the judge 'vllm' is a model that Ray Serve hosts, and none is served here",
            fix="use it through the verifier's endpoint (serve run deployments.verifier:build "
            "judge=vllm), or serve the model with vLLM's own server and choose 'openai'",
        )
    return vllm
