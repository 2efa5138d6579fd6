"""From a recipe's name or file and `key=value` overrides to a checked `config.Run`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from veripo_ray import config, mistakes
from veripo_ray.errors import ConfigError


def available() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("veripo_ray") / "recipes"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> config.Run:
    """The whole configuration, checked. Raises ConfigError that lists every mistake at once."""
    raw = _laid_over(recipe, overrides)
    if not isinstance(raw, dict):
        raise ConfigError(f"{recipe}: expected settings, got {type(raw).__name__}")
    return check({str(key): value for key, value in raw.items()}, str(recipe))


def text(recipe: str | Path, overrides: Sequence[str] = ()) -> str:
    """The recipe with the overrides in it, as YAML: what `load` reads, not yet checked."""
    return OmegaConf.to_yaml(OmegaConf.create(_laid_over(recipe, overrides)))


def _laid_over(recipe: str | Path, overrides: Sequence[str]) -> Any:
    try:
        settings = OmegaConf.create(_read(recipe))
        _expand_schedule(settings)
        for item in overrides:
            _override(settings, item)
        return OmegaConf.to_container(settings, resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{recipe}: {error}", fix="write the recipe as YAML") from error


def _expand_schedule(settings: Any) -> None:
    """`schedule: [grpo, dpo]` is short for entries that have a phase and nothing of their own."""
    if isinstance(settings, DictConfig) and isinstance(settings.get("schedule"), ListConfig):
        settings.schedule = [{"phase": e} if isinstance(e, str) else e for e in settings.schedule]


def _override(settings: Any, item: str) -> None:
    key, equals, _ = item.partition("=")
    if not (key and equals):
        raise ConfigError(f"{item!r} is not an override", fix="write key=value, as in grpo.lr=1e-6")
    try:
        value = OmegaConf.select(OmegaConf.from_dotlist([item]), key)
    except YAMLError as error:
        raise ConfigError(
            f"the value of {item!r} cannot be read: {error}",
            fix="write it as YAML, and quote it for the shell: 'learner.lora={rank: 8}'",
        ) from None
    try:
        OmegaConf.update(settings, key, value, merge=True)
    except (IndexError, TypeError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"{item!r} does not fit the recipe: {error}", fix="check the key"
        ) from None
    if key == "schedule":
        _expand_schedule(settings)


def check(raw: dict[str, Any], origin: str = "configuration") -> config.Run:
    """Validate plain settings, phase sections laid under the schedule's entries."""
    try:
        return config.Run.model_validate(_with_phase_sections(raw))
    except ValidationError as error:
        lines = [f"  {line}" for line in mistakes.explain(error, config.Run, _phase_models())]
        count = f"{len(lines)} settings need" if len(lines) > 1 else "a setting needs"
        raise ConfigError(
            "\n".join([f"{origin}: {count} mending", *lines]),
            fix="correct the recipe, or the key=value on the command line",
        ) from None


def dump(run: config.Run) -> str:
    """The resolved settings as YAML; `load` reads it back to an equal Run."""
    return OmegaConf.to_yaml(OmegaConf.create(run.model_dump(mode="json")))


def _read(recipe: str | Path) -> str:
    shipped = resources.files("veripo_ray") / "recipes" / f"{recipe}.yaml"
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"no such recipe file: {path}", fix="check the path")
        return path.read_text()
    if shipped.is_file():
        return shipped.read_text()
    raise ConfigError(
        f"unknown recipe {str(recipe)!r}",
        fix=f"use one of {', '.join(available())}, or the path of a .yaml file",
    )


def _with_phase_sections(raw: dict[str, Any]) -> dict[str, Any]:
    """Lay each `grpo`/`dpo`/`sft` section under the schedule's entries of that phase."""
    names = _phase_models()
    settings = {key: value for key, value in raw.items() if key not in names}
    sections = {name: raw.get(name) or {} for name in names}
    for name, section in sections.items():
        _check_section(name, section)
    schedule = settings.get("schedule")
    if isinstance(schedule, list):
        settings["schedule"] = [
            {**sections.get(str(e.get("phase")), {}), **e} if isinstance(e, dict) else e
            for e in schedule
        ]
    return settings


def _check_section(name: str, section: Any) -> None:
    """Unknown names in a section are reported under the section, not under schedule.N."""
    known = _phase_models()[name].model_fields
    if not isinstance(section, dict):
        raise ConfigError(
            f"{name}: expected settings, got {section!r}", fix=f"write {name}.KEY: VALUE"
        )
    for key in section:
        if key not in known or key == "phase":
            raise ConfigError(
                f"{name}.{key}: unknown setting{mistakes.suggestion(name, key, known)}"
            )


@cache
def _phase_models() -> dict[str, type[BaseModel]]:
    """Settings of each kind of phase, by its name."""
    union = get_args(config.Phase)[0]
    return {model.model_fields["phase"].default: model for model in get_args(union)}
