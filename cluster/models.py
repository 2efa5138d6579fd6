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
    if model == "tinyworld":
        return Path(str(resources.files("veripo_ray") / "tinyworld" / "checkpoint"))
    folder = Path(model).expanduser().absolute()
    if folder.exists() or not (hub := _HUB_NAME.fullmatch(model)):
        return folder
    return _from_hub(model, hub["name"], hub["revision"], weights)


def _from_hub(model: str, name: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    patterns = _DESCRIPTION + (_WEIGHTS if weights else [])

    def snapshot(*, look_up: bool) -> Path:
        found = snapshot_download(
            name, revision=revision, allow_patterns=patterns, local_files_only=not look_up
        )
        return Path(found)

    try:
        return snapshot(look_up=False)
    except LocalEntryNotFoundError:
        pass
    try:
        return snapshot(look_up=True)
    except (OSError, ValueError, HTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"model = {model} is no folder here, and cannot be fetched from the Hugging Face Hub: "
            f"{reason}",
            fix="correct it; or, where there is no way to the Hub, give the path of a folder: "
            f"`hf download {name}` on a machine that has one prints it. HF_TOKEN opens a gated "
            "model, HF_HUB_OFFLINE=1 forbids to look",
        ) from error
