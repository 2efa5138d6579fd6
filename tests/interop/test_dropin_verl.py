"""verl finds our reward function and gets a number from it, or an error that ends the step.

verl itself is not installed here: it is called as verl 0.9 calls, by its documented signature.
"""

from __future__ import annotations

import importlib
from functools import partial

import pytest
from omegaconf import OmegaConf

from veripo_ray.errors import ConfigError, ScoringError

GOOD = "<think> one and one make two, so 2 </think> <answer> 2 </answer>"
WAVERING = "<think> one and one make two, so 3 </think> <answer> 2 </answer>"


def loaded(**reward_kwargs: object):
    """As verl.trainer.ppo.reward.get_custom_reward_fn does for `pkg://veripo_ray.dropin.verl`."""
    kwargs = dict(OmegaConf.create(reward_kwargs))
    function = getattr(importlib.import_module("veripo_ray.dropin.verl"), "compute_score")  # noqa: B009
    return partial(function, **kwargs)


def scored(function, response: str, gold: str = "2", **extra: object) -> dict[str, float]:
    return function(
        data_source="sums",
        solution_str=response,
        ground_truth=gold,
        extra_info={"index": 7} | extra,
    )


def test_the_score_is_the_reward_and_the_rest_can_be_plotted():
    result = scored(loaded(), GOOD, kind="numeric")
    assert result["score"] == 1.5
    assert result["accuracy"] == result["format"] == 1.0
    assert all(isinstance(value, float) for value in result.values())


def test_settings_come_from_verls_reward_kwargs():
    function = loaded(kind="numeric", inconsistency_penalty=0.5, checks={"min_think_tokens": 2})
    assert scored(function, GOOD)["score"] == 1.5
    assert scored(function, WAVERING)["score"] == 1.0
    with pytest.raises(ConfigError, match="penalty"):
        scored(loaded(penalty=1), GOOD)


def test_every_result_has_the_same_keys():
    function = loaded(kind="numeric")
    assert scored(function, GOOD).keys() == scored(function, "no tags at all").keys()


def test_a_response_that_cannot_be_scored_raises_and_names_its_row():
    with pytest.raises(ScoringError, match="row 7") as caught:
        scored(loaded(kind="numeric"), GOOD, gold="many")
    assert "'many'" in caught.value.problem
    with pytest.raises(ScoringError, match="names no kind"):
        scored(loaded(), GOOD)


def test_verl_may_pass_what_belongs_to_its_own_reward_model():
    function = partial(loaded(kind="numeric"), reward_router_address="a:1")
    assert scored(function, GOOD)["score"] == 1.5
