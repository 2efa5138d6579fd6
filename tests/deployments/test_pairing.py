"""Preference pairs of texts are the library's own, question by question."""

from __future__ import annotations

import pytest

from deployments.settings import Args
from veripo_ray.records import Family
from veripo_ray.verifier.shapes import PairsReply, QuestionPairs

THINK = "<think> f1 red and f2 red and f3 red once more, so there are 3. </think> "
RIGHT, WRONG = THINK + "<answer> 3 </answer>", THINK.replace("3.", "5.") + "<answer> 5 </answer>"
ASKED = {
    "question_id": "clip-7",
    "question": "How many are red?",
    "kind": "numeric",
    "gold": "3",
    "responses": [RIGHT, WRONG],
}


def pairs(reply) -> list[QuestionPairs]:
    assert reply.status_code == 200, reply.text
    return list(PairsReply.model_validate(reply.json()).questions)


def test_pairs_explain_themselves(local):
    (result,) = pairs(local().post("/v1/pairs", {"questions": [ASKED]}))
    assert result.question_id == "clip-7"
    accuracy = next(pair for pair in result.pairs if pair.family is Family.ACCURACY)
    assert (accuracy.chosen, accuracy.rejected) == (RIGHT, WRONG)
    assert "'5' is wrong" in accuracy.explanation


def test_the_same_seed_gives_the_same_pairs(local):
    responses = [f"{text} <!-- {n} -->" for n in range(6) for text in (RIGHT, WRONG)]
    body = {"questions": [ASKED | {"responses": responses}]}
    here = local()
    first, again, *others = (
        pairs(here.post("/v1/pairs", body | {"seed": seed})) for seed in (3, 3, 4, 5, 6)
    )
    assert first == again
    assert any(other != first for other in others)


def test_verdicts_that_are_given_are_not_made_again(local):
    here = local()
    item = {key: ASKED[key] for key in ("question_id", "question", "kind", "gold")}
    rows = [item | {"response": response} for response in ASKED["responses"]]
    verdicts = here.post("/v1/verify", {"items": rows}).json()["verdicts"]
    given = pairs(here.post("/v1/pairs", {"questions": [ASKED | {"verdicts": verdicts}]}))
    assert given == pairs(here.post("/v1/pairs", {"questions": [ASKED]}))
    swapped = ASKED | {"verdicts": verdicts[::-1]}
    (result,) = pairs(here.post("/v1/pairs", {"questions": [swapped]}))
    assert all(pair.chosen != RIGHT for pair in result.pairs)


def test_a_bad_question_leaves_the_others_their_pairs(local):
    odd = [
        3,
        {"question_id": "x"},
        ASKED | {"kind": "essay"},
        ASKED | {"verdicts": []},
        ASKED | {"verdicts": [{"checks": []}] * 2},
        ASKED | {"responses": [RIGHT] * 65},
        ASKED | {"gold": "many"},
    ]
    here = local()
    results = pairs(here.post("/v1/pairs", {"questions": [ASKED, *odd, ASKED]}))
    assert results[0].pairs
    assert results[-1].pairs
    assert all(result.error and not result.pairs for result in results[1:-1])
    assert "gold answer" in results[-2].error


def test_a_response_that_was_cut_off_is_never_chosen(local):
    cut = {"text": RIGHT, "finish_reason": "length"}
    (result,) = pairs(
        local().post("/v1/pairs", {"questions": [ASKED | {"responses": [cut, WRONG]}]})
    )
    assert result.pairs == ()


def test_the_tokenizer_of_a_checkpoint_may_count(local, shipped_checkpoint):
    here = local(Args(tokenizer=str(shipped_checkpoint)))
    (result,) = pairs(here.post("/v1/pairs", {"questions": [ASKED]}))
    assert result.pairs


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ([], 400),
        ({"questions": 3}, 400),
        ({"questions": [], "seed": "x"}, 400),
        ({"questions": [], "seed": -1}, 400),
        ({"questions": [], "more": 1}, 400),
        ({"questions": [ASKED | {"responses": [RIGHT] * 9}]}, 413),
        ({"questions": [3] * 9}, 413),
    ],
)
def test_what_is_no_request_is_refused(local, body, status):
    reply = local(Args(max_items=8)).post("/v1/pairs", body)
    assert reply.status_code == status
    assert reply.json()["error"]
