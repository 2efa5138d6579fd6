"""A checkpoint's config.json, read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from veripo_ray.errors import CheckpointError


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json as it is. Raises CheckpointError when there is none that can be read."""
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"checkpoint '{folder}' has no config.json that can be read",
            fix="give a folder in Hugging Face layout (config.json, *.safetensors, tokenizer)",
        ) from error
