"""The judge that the settings name is built, or what is missing is named."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from veripo_ray import config
from veripo_ray.errors import ConfigError
from veripo_ray.records import Kind
from veripo_ray.verifier.judges import Answered, Case, breakers, build, close

OPENAI = config.OpenAiJudge(url="http://127.0.0.1:9/v1", model="m")
ALL = config.Judges(
    vllm=config.VllmJudge(model="/models/small", threshold=0.9),
    openai=OPENAI,
    committee=config.Committee(members=("rules", "tinyworld", "vllm", "openai")),
)


async def says_yes(prompts: Sequence[str]) -> list[Answered | str]:
    return [Answered.likely(0.8)] * len(prompts)


@pytest.mark.parametrize("name", ["rules", "tinyworld", "vllm", "openai", "committee"])
def test_every_name_gives_its_judge(name):
    judge = build(name, ALL, vllm=says_yes)
    assert judge.name == name
    asyncio.run(close(judge))


@pytest.mark.parametrize("name", ["rules", "tinyworld"])
def test_two_judges_need_no_settings(name):
    (judgement,) = asyncio.run(
        build(name, config.Judges()).judge([Case("?", Kind.CHOICE, (), "f1 red so red B", "B")])
    )
    assert judgement.consistent is True


@pytest.mark.parametrize(
    ("name", "judges", "problem"),
    [
        ("vllm", config.Judges(), "judges.vllm.model is not set"),
        ("openai", config.Judges(), "judges.openai.url and .model are not set"),
        ("committee", config.Judges(), r"judges.committee.members = \[\] is no committee"),
        (
            "committee",
            config.Judges(committee=config.Committee(members=("vllm", "openai"))),
            "judges.vllm.model is not set.*judges.openai.url",
        ),
    ],
)
def test_what_is_missing_is_named(name, judges, problem):
    with pytest.raises(ConfigError, match=problem):
        build(name, judges, vllm=says_yes)


@pytest.mark.parametrize("name", ["vllm", "committee"])
def test_a_model_that_nobody_serves_is_told_with_what_to_do(name):
    assert config.wants_vllm(name, ALL)
    with pytest.raises(ConfigError, match="none is served here") as error:
        build(name, ALL)
    assert "serve run deployments.verifier:build judge=vllm" in error.value.fix


def test_only_those_that_ask_the_served_model_want_it():
    two = config.Judges(committee=config.Committee(members=("rules", "openai")), openai=OPENAI)
    assert not any(
        config.wants_vllm(name, two) for name in ("rules", "tinyworld", "openai", "committee")
    )


def test_each_judge_has_the_threshold_of_its_own_section():
    case = Case("?", Kind.CHOICE, (), "so B", "B")
    (judgement,) = asyncio.run(build("vllm", ALL, vllm=says_yes).judge([case]))
    assert judgement.consistent is False  # 0.8 < 0.9


def test_circuit_breakers_are_found_by_name():
    assert list(breakers(build("committee", ALL, vllm=says_yes))) == ["committee.openai"]
    assert list(breakers(build("openai", ALL))) == ["openai"]
    assert breakers(build("rules", ALL)) == {}
