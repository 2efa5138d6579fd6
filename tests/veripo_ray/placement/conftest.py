"""A recipe of a model that is known by name, as far as a plan reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from veripo_ray import config


@pytest.fixture(scope="session")
def recipe_of() -> Callable[..., config.Run]:
    def make(model: str = "Qwen2.5-VL-7B-Instruct", **sections: Any) -> config.Run:
        return config.Run.model_validate(
            {
                "model": f"/nowhere/{model}",
                "output": Path("unused"),
                "device": "cuda",
                "schedule": [{"phase": "grpo"}, {"phase": "dpo"}],
                "data": {"tinyworld": {}},
                **sections,
            }
        )

    return make
