"""What `veripo manifests` does: values read and checked, manifests rendered and written."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from cluster.kuberay import manifests
from cluster.kuberay.pods import DATA, Part
from cluster.kuberay.values import Values
from veripo_ray import config, mistakes
from veripo_ray import recipe as recipes
from veripo_ray.errors import ConfigError
from veripo_ray.placement import Cluster, Node, plan

KINDS = ("job", "cluster", "service")


def read(
    options: Mapping[str, Any], overrides: Sequence[str] = (), file: Path | None = None
) -> Values:
    """Values of a file, under KEY=VALUE, under options that are not None. `recipe.KEY=VALUE` is
    laid over the recipe. Raises ConfigError that lists every mistake."""
    of_recipe = [item.removeprefix("recipe.") for item in overrides if item.startswith("recipe.")]
    own = [item for item in overrides if not item.startswith("recipe.")]
    given = {name: value for name, value in options.items() if value is not None}
    try:
        for item in own:
            if not all(item.partition("=")[:2]):
                raise ConfigError(f"{item!r} is not KEY=VALUE", fix="write it as in gpus=16")
        settings = OmegaConf.merge(
            OmegaConf.create(_text(file)), OmegaConf.from_dotlist(own), OmegaConf.create(given)
        )
        raw = OmegaConf.to_container(settings, resolve=True)
        assert isinstance(raw, dict)
        raw["settings"] = [*(raw.get("settings") or ()), *of_recipe]
        return Values.model_validate(raw)
    except ValidationError as error:
        problem = "\n".join(f"  {line}" for line in mistakes.explain(error, Values))
    except (OmegaConfBaseException, YAMLError, AssertionError) as error:
        problem = f"  {error}"
    raise ConfigError(
        f"the manifests cannot be made:\n{problem}",
        fix=f"correct the option, the KEY=VALUE{f' or {file}' if file else ''}",
    )


def _text(file: Path | None) -> str:
    if file is None:
        return "{}"
    if not file.is_file():
        raise ConfigError(f"no such file of values: {file}", fix="check the path")
    return file.read_text() or "{}"


def render(values: Values, kind: str = "all") -> dict[str, str]:
    """The YAML of one of KINDS, or of all, by file name. Raises ConfigError for another kind or a
    mistaken recipe, and ResourceError when the cluster would be too small for the recipe."""
    if kind not in (*KINDS, "all"):
        raise ConfigError(f"no such kind: {kind!r}", fix=f"use {', '.join(KINDS)} or all")
    files = {}
    for name in KINDS if kind == "all" else (kind,):
        if name == "service":
            objects = manifests.service(values)
        else:
            make = manifests.job if name == "job" else manifests.cluster
            objects = make(values, recipe(values))
        files[f"{name}.yaml"] = _head(values, name) + _dump(objects)
    return files


def recipe(values: Values) -> str:
    """The recipe's text for this cluster, checked: its device is not the head's, which has none."""
    chosen = list(values.settings)
    run = recipes.load(values.recipe, chosen)
    device: Literal["cuda", "cpu"] = "cuda" if values.gpus else "cpu"
    if run.device not in ("auto", device):
        raise ConfigError(
            f"the recipe's device = {run.device}, but gpus = {values.gpus}",
            fix=f"recipe.device={device}, or other --gpus",
        )
    chosen.append(f"device={device}")
    if values.claim and run.features.cache_dir is None:  # what was encoded outlives the pods
        chosen.append(f"features.cache_dir={DATA}/cache/features")
    if values.scales and run.rollout.most_workers <= run.rollout.workers:
        raise ConfigError(
            f"rollout.max_nodes = {values.rollout.max_nodes} lets the cluster grow, but no more "
            f"than the recipe's rollout.workers = {run.rollout.workers} would be there to use it",
            fix="raise recipe.rollout.max_workers, or leave rollout.max_nodes out",
        )
    _check_fits(values, run.model_copy(update={"device": device}))
    return recipes.text(values.recipe, chosen)


def _check_fits(values: Values, run: config.Run) -> None:
    worker = Node("worker", float(values.worker_pod.cpus), float(values.gpus_a_node))
    workers = [
        replace(worker, id=f"worker-{number}")
        for number in range(values.fixed_nodes + values.rollout.min_nodes)  # those it begins with
    ]
    plan(run, Cluster((Node("head", float(values.head.cpus)), *workers)))


def write(values: Values, kind: str, out: Path | None) -> list[Path]:
    """Write the manifests into a folder, or to standard output; the files."""
    files = render(values, kind)
    if out is None:
        sys.stdout.write("---\n".join(files.values()))
        return []
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (out / name).write_text(text)
    return [out / name for name in files]


def _head(values: Values, kind: str) -> str:
    lines = [f"# Rendered by `veripo manifests`, for KubeRay {manifests.KUBERAY}."]
    for name, holds in manifests.secrets(values, kind).items():
        lines.append(f"# Wants the Secret {name} ({holds}).")
    return "\n".join(lines) + "\n"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks."""


def _as_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _as_block)


def _dump(objects: list[Part]) -> str:
    apart = json.loads(json.dumps(objects))  # parts used twice would become anchors
    return yaml.dump_all(apart, Dumper=_Dumper, sort_keys=False, width=100)
