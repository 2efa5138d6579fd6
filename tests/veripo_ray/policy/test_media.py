"""Features check themselves."""

from __future__ import annotations

import numpy as np
import pytest

from veripo_ray.policy.media import Features


def test_seconds_per_grid_are_what_float32_can_hold():
    features = Features("video", np.zeros((1, 4), np.float32), (1, 2, 2), 0.7)
    assert features.seconds_per_grid == float(np.float32(0.7)) < 0.7


def test_features_of_a_wrong_shape_or_rate_are_refused():
    with pytest.raises(ValueError, match="hidden"):
        Features("image", np.zeros(4, np.float32), (1, 2, 2), 0.0)
    with pytest.raises(ValueError, match="seconds_per_grid"):
        Features("video", np.zeros((1, 4), np.float32), (1, 2, 2), 0.0)


def test_a_video_has_a_timestamp_for_each_step_or_none_at_all():
    values = np.zeros((2, 4), np.float32)
    assert Features("video", values, (2, 2, 2), 1.0).timestamps == ()
    with pytest.raises(ValueError, match="1 timestamps for a grid of 2"):
        Features("video", values, (2, 2, 2), 1.0, (0.5,))
