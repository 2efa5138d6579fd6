"""Figures of a stage are means with honest standard errors; what failed is set apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.evaluation import Clusters, StageFigures
from veripo_ray.records import Group, JudgedGroup, Kind, Question, Rollout
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.verify import Item, undecided, verify


def group(name: str, *texts: str) -> Group:
    asked = Question(id=name, text="?", kind=Kind.NUMERIC, gold="3")
    rollouts = [
        Rollout(text=t, token_ids=[1], logprobs=[0.0], finish_reason="stop", policy_version=0)
        for t in texts
    ]
    return Group(id=name, question=asked, prompt_ids=[1], rollouts=tuple(rollouts))


def judge(one: Group) -> JudgedGroup:
    verdicts = verify([Item.of(one.question, r.text) for r in one.rollouts], Rules())
    return JudgedGroup(group_id=one.id, verdicts=tuple(verdicts))


def stage_metrics(groups: list[Group], judged: list[JudgedGroup]) -> dict[str, float]:
    figures = StageFigures()
    for one, verdicts in zip(groups, judged, strict=True):  # however they were batched
        figures.add([one], [verdicts])
    return figures.metrics()


def mean_and_error(clusters: list[list[float]]) -> tuple[float, float]:
    return Clusters(clusters).mean_and_error()


def response(conclusion: str, answer: str) -> str:
    return f"<think> f1 red 1 f2 red 2 so {conclusion} </think> <answer> {answer} </answer>"


def test_figures_of_a_stage():
    texts = [response("3", "3"), response("2", "3"), response("7", "7"), "3"]
    groups = [group(f"g{n}", text) for n, text in enumerate(texts)]
    metrics = stage_metrics(groups, [judge(one) for one in groups])
    assert metrics["n"] == 4
    assert metrics["errors"] == 0
    assert metrics["accuracy"] == 0.5
    assert metrics["inconsistency"] == pytest.approx(1 / 3)  # the ill-formed one is not decided
    assert metrics["correct_and_consistent"] == 0.25
    assert metrics["format"] == 0.75
    assert metrics["repetition"] == 0
    assert metrics["mean_think_tokens"] == (8 * 3 + 1) / 4
    assert metrics["accuracy_se"] == pytest.approx(np.std([1, 1, 0, 0], ddof=1) / 2)


def test_an_error_counts_as_an_error_and_nowhere_else():
    fine, failed = group("g0", response("3", "3")), group("g1", response("3", "3"))
    masked = JudgedGroup(group_id="g1", verdicts=(undecided("the judge is down"),))
    unreachable = group("g2", response("3", "3"))
    metrics = stage_metrics(
        [fine, failed, unreachable],
        [judge(fine), masked, JudgedGroup(group_id="g2", error="no answer")],
    )
    assert (metrics["n"], metrics["errors"], metrics["accuracy"]) == (1, 2, 1.0)
    assert math.isnan(metrics["accuracy_se"])


def test_no_usable_response_gives_no_figure():
    metrics = stage_metrics([], [])
    assert metrics["n"] == 0
    assert math.isnan(metrics["accuracy"])


def test_verdicts_of_another_group_are_refused():
    with pytest.raises(ValueError, match="g1"):
        stage_metrics([group("g0", "3")], [judge(group("g1", "3"))])


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=40))
def test_with_one_response_a_question_the_error_is_the_usual_one(values):
    mean, error = mean_and_error([[value] for value in values])
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    assert error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-9)


def test_copies_of_a_response_do_not_shrink_the_error():
    once = mean_and_error([[0.0], [1.0], [1.0]])
    assert mean_and_error([[0.0] * 8, [1.0] * 8, [1.0] * 8]) == pytest.approx(once)
