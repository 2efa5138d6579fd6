"""The start checkpoint's folder: what the setting `model` means on this machine."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from veripo_ray.errors import CheckpointError

_HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w.-]*))?")
_DESCRIPTION = ["*.json", "*.jinja", "*.txt", "*.model"]  # a checkpoint but for its weights
_WEIGHTS = ["*.safetensors"]


def model_folder(model: str, *, weights: bool = True) -> Path:
    """The checkpoint's folder; 'tinyworld' is the one that ships with the package.

    model: a folder, or a model on the Hugging Face Hub: ORGANISATION/NAME, perhaps @REVISION. That
    is taken from the Hub's local cache ($HF_HOME), downloaded into it first where it is missing.
    weights: False leaves them where they are, when all that is wanted is to read about the model.
    Raises CheckpointError when it is neither a folder nor on the Hub.
    """
    if found := local_folder(model, weights=weights):
        return found
    if not (hub := _HUB_NAME.fullmatch(model)):
        return _path(model)  # whoever reads it says what it lacks
    from huggingface_hub.errors import HTTPError

    try:
        return _snapshot(hub, weights, look_up=True)
    except (OSError, ValueError, HTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"model = {model} is no folder here, and cannot be fetched from the Hugging Face Hub: "
            f"{reason}",
            fix="correct it; or, where there is no way to the Hub, give the path of a folder: "
            f"`hf download {hub['name']}` on a machine that has one prints it. HF_TOKEN opens a "
            "gated model, HF_HUB_OFFLINE=1 forbids to look",
        ) from error


def local_folder(model: str, *, weights: bool = True) -> Path | None:
    """The same as far as this machine has it; None without a look at the Hub."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if model == "tinyworld":
        return Path(str(resources.files("veripo_ray") / "tinyworld" / "checkpoint"))
    if _path(model).exists():
        return _path(model)
    if not (hub := _HUB_NAME.fullmatch(model)):
        return None
    try:
        return _snapshot(hub, weights, look_up=False)
    except (LocalEntryNotFoundError, ValueError):  # ValueError: no name that the Hub would take
        return None


def _path(model: str) -> Path:
    return Path(model).expanduser().absolute()


def _snapshot(hub: re.Match[str], weights: bool, *, look_up: bool) -> Path:
    from huggingface_hub import snapshot_download

    found = snapshot_download(
        hub["name"],
        revision=hub["revision"],
        allow_patterns=_DESCRIPTION + (_WEIGHTS if weights else []),
        local_files_only=not look_up,
    )
    return Path(found)
