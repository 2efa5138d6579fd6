"""The oracles are other trainers' own code; they are installed by the `interop` extra."""

from __future__ import annotations

import pytest

from veripo_ray.compat import stand_in_flash_attn


@pytest.fixture(scope="session")
def openrlhf_losses():
    """OpenRLHF's `openrlhf.models.loss`."""
    stand_in_flash_attn()
    return pytest.importorskip("openrlhf.models.loss")
