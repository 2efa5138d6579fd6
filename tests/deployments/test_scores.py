"""Scores in vLLM's shape and rewards in OpenRLHF's: VerIPO's reward, or none at all."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.openrlhf import response_of
from deployments.settings import Args, Rewards
from veripo_ray.records import Kind
from veripo_ray.verifier.judges import Case, Judgement
from veripo_ray.verifier.shapes import RewardReply, ScoreReply

THINK = "<think> one red and two more, so there are 3. </think> "
RIGHT, WRONG, BARE = THINK + "<answer> 3 </answer>", THINK + "<answer> 5 </answer>", "3"
LABEL = {"gold": "3", "kind": "numeric"}
PROMPT = "<|im_start|>user\nHow many? <|im_end|>\n<|im_start|>assistant\n"


class Failing:
    name = "failing"

    async def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        return [Judgement.failed("it is down") for _ in cases]


def scores(reply) -> list[float | None]:
    assert reply.status_code == 200, reply.text
    return [one.score for one in ScoreReply.model_validate(reply.json()).data]


@pytest.mark.parametrize(
    ("label", "response", "score"),
    [
        (LABEL, RIGHT, 1.5),
        (LABEL, WRONG, 0.5),
        (LABEL, BARE, 0.0),
        (LABEL, RIGHT.replace("<think>", ""), 1.0),
        ({"gold": "10", "kind": "numeric"}, THINK + "<answer> 9 </answer>", 1.4),
        ({"gold": "B", "kind": "choice"}, THINK + "<answer> B </answer>", 1.5),
        (json.dumps(LABEL), RIGHT, 1.5),
    ],
)
def test_the_score_is_the_papers_reward(local, label, response, score):
    reply = local().post("/v1/score", {"text_1": label, "text_2": response})
    assert scores(reply) == [pytest.approx(score)]


def test_texts_are_paired_as_vllm_pairs_them(local):
    here = local()
    many = {"text_1": [LABEL, {"gold": "5", "kind": "numeric"}], "text_2": [RIGHT, RIGHT]}
    assert scores(here.post("/v1/score", {"text_1": LABEL, "text_2": [RIGHT, WRONG]})) == [1.5, 0.5]
    assert scores(here.post("/v1/score", many)) == [1.5, pytest.approx(0.8)]
    other = {"queries": LABEL, "documents": [RIGHT], "model": "any"}
    assert scores(here.post("/v1/score", other)) == [1.5]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"text_1": [LABEL] * 2, "text_2": [RIGHT] * 3}, "2 entries"),
        ({"text_1": LABEL}, "text_2"),
        ({"queries": LABEL, "text_2": RIGHT}, "queries and documents"),
        ({"text_1": LABEL, "text_2": RIGHT, "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ([], "valid"),
    ],
)
def test_requests_that_do_not_fit_are_refused(local, body, said):
    reply = local().post("/v1/score", body)
    assert reply.status_code == 400
    assert said in reply.json()["error"]


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("3", "rewards.label_kind"),
        ({"gold": "many", "kind": "numeric"}, "gold answer"),
        ('{"gold": "3", "kind": "essay"}', "kind"),
        ('{"answer": "3"}', "gold"),
    ],
)
def test_what_cannot_be_scored_has_null_and_a_reason(local, label, said):
    reply = local().post("/v1/score", {"text_1": [label, LABEL], "text_2": [RIGHT, RIGHT]})
    bad, good = reply.json()["data"]
    assert bad["score"] is None
    assert said in bad["error"]
    assert good["score"] == 1.5


def test_a_plain_label_has_the_kind_of_the_setting(local):
    here = local(Args(rewards=Rewards(label_kind=Kind.NUMERIC)))
    assert scores(here.post("/v1/score", {"text_1": ["3", 3], "text_2": [RIGHT, WRONG]})) == [
        1.5,
        0.5,
    ]
    maths = local(Args(rewards=Rewards(label_kind=Kind.MATH)))
    sets = {"text_1": "\\{1, 2\\}", "text_2": THINK + "<answer> $\\{2, 1\\}$ </answer>"}
    assert scores(maths.post("/v1/score", sets)) == [1.5]


def test_a_penalty_is_for_contradictions_alone(local):
    here = local(Args(rewards=Rewards(inconsistency_penalty=0.7)))
    unread = "<think> Let me look at it again and again and again. </think> <answer> 3 </answer>"
    reply = here.post("/v1/score", {"text_1": LABEL, "text_2": [RIGHT, WRONG, unread]})
    assert scores(reply) == [1.5, pytest.approx(0.5 - 0.7), 1.5]


def test_a_judge_that_fails_leaves_no_score_where_the_score_needs_it(local):
    body = {"text_1": LABEL, "text_2": [RIGHT]}
    assert scores(local(judge=Failing()).post("/v1/score", body)) == [1.5]
    args = Args(rewards=Rewards(inconsistency_penalty=0.5))
    (datum,) = local(args, judge=Failing()).post("/v1/score", body).json()["data"]
    assert datum["score"] is None
    assert "it is down" in datum["error"]


def rewards_of(reply) -> RewardReply:
    assert reply.status_code == 200, reply.text
    return RewardReply.model_validate(reply.json())


def asked(*responses: str, label: object = LABEL) -> dict[str, object]:
    return {
        "query": [PROMPT + response for response in responses],
        "prompts": [PROMPT] * len(responses),
        "labels": [label] * len(responses),
    }


def test_openrlhf_gets_a_reward_a_score_and_logs_of_each_query(local):
    args = Args(rewards=Rewards(inconsistency_penalty=0.2))
    reply = rewards_of(local(args).post("/get_reward", asked(RIGHT + "<|im_end|>", WRONG, BARE)))
    assert reply.rewards == (1.5, pytest.approx(0.3), 0.0)
    assert reply.scores == (1.0, 0.0, 0.0)
    assert reply.extra_logs == {
        "format": (1.0, 1.0, 0.0),
        "think_tokens": (9.0, 9.0, 1.0),
        "repetition": (0.0, 0.0, 0.0),
        "inconsistent": (0.0, 1.0, 0.0),
        "judged": (1.0, 1.0, 0.0),
    }


def test_what_no_judge_was_asked_is_not_logged(local):
    reply = rewards_of(local(judge=Failing()).post("/get_reward", asked(RIGHT)))
    assert reply.extra_logs.keys() == {"format", "think_tokens", "repetition"}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (asked(RIGHT, label="3"), 422, "1 of 1 queries have no reward; query 0: "),
        (asked(RIGHT, label=""), 422, "label"),
        (asked(RIGHT) | {"prompts": ["Another prompt, which is not in the query"]}, 422, "prompt"),
        (asked(RIGHT) | {"labels": []}, 400, "0 labels"),
        ({"query": ["x"]}, 400, "prompts"),
        (asked(*[RIGHT] * 9), 413, "9 items"),
    ],
)
def test_a_query_without_a_reward_refuses_the_request(local, body, status, said):
    reply = local(Args(max_items=8)).post("/get_reward", body)
    assert reply.status_code == status
    assert said in reply.json()["error"]
    assert reply.json()["fix"]


def test_a_judge_that_is_down_for_now_is_worth_another_try(local):
    args = Args(rewards=Rewards(inconsistency_penalty=0.5))
    reply = local(args, judge=Failing()).post("/get_reward", asked(RIGHT))
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "1"
    assert "it is down" in reply.json()["error"]


@given(st.text(), st.text())
def test_the_response_is_what_stands_behind_the_prompt(prompt, response):
    assert response_of(prompt + response, prompt) == response


@pytest.mark.parametrize("pads", [1, 400])
def test_the_response_is_found_behind_media_and_behind_a_cut(pads):
    before, behind = (
        "<|im_start|>user\n<|vision_start|>",
        "<|vision_end|>Which? <|im_end|>\nassistant\n",
    )
    prompt = before + "<|video_pad|>" + behind
    # A policy that writes the prompt's end once more gains nothing by it.
    response = "<think> B </think> Which? <|im_end|>\nassistant\n <answer> A </answer>"
    expanded = before + "<|video_pad|>" * pads + behind
    assert response_of(expanded + response, prompt) == response
    assert response_of((expanded + response)[25:], prompt) == response


def test_a_prompt_whose_end_comes_several_times_is_passed_over_as_often():
    turn = "Which? <|im_end|>\nassistant\n"
    prompt = f"<|vision_end|>{turn}A{turn}"
    assert response_of(f"cut{turn}A{turn}B{turn}C", f"<|vision_start|>{prompt}") == f"B{turn}C"
