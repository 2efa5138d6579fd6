"""Pairs are what their family says, in the wanted mix, each once, and the same every time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veripo_ray import config
from veripo_ray.errors import DataError
from veripo_ray.pairs import ENOUGH, LENGTHS, QUOTA, SAME_TEXT, build_pairs
from veripo_ray.records import Family, Group, JudgedGroup, Kind, Pair, Question, Rollout
from veripo_ray.scoring.rewards import reward
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.verify import Item, undecided, verify

STOP = 9999
WORDS: dict[str, int] = {}
CHAIN = "f1 red 1 f2 blue 1 f3 red 2"

GOOD = f"<think> {CHAIN} so 2 </think> <answer> 2 </answer>"
LONG = f"<think> {CHAIN} f4 blue 2 f5 green 2 so 2 </think> <answer> 2 </answer>"
WRONG = "<think> f1 red 1 f2 red 2 f3 red 3 so 3 </think> <answer> 3 </answer>"
WAVERING = f"<think> {CHAIN} so 3 </think> <answer> 2 </answer>"
LOOPING = f"<think> {'f1 red 1 ' * 5} so 2 </think> <answer> 2 </answer>"
BROKEN = f"<think> {CHAIN} so 2 </think> 2"
ALL = (GOOD, LONG, WRONG, WAVERING, LOOPING, BROKEN)

COUNT = Question(id="q", text="count red ?", kind=Kind.NUMERIC, gold="2")
SETTINGS = config.Pairs(reflective_turn="wait")


def encode(text: str) -> np.ndarray:
    return np.array([WORDS.setdefault(word, len(WORDS)) for word in text.split()], np.int32)


def group(
    *texts: str, asked: Question = COUNT, name: str = "g", cut: tuple[int, ...] = ()
) -> Group:
    rollouts = []
    for index, text in enumerate(texts):
        ids = encode(text) if index in cut else np.append(encode(text), STOP)
        rollouts.append(
            Rollout(
                text=text,
                token_ids=ids,
                logprobs=np.zeros(len(ids)),
                finish_reason="length" if index in cut else "stop",
                policy_version=0,
            )
        )
    return Group(id=name, question=asked, prompt_ids=[1, 2], rollouts=tuple(rollouts))


def judge(one: Group) -> JudgedGroup:
    items = [Item.of(one.question, rollout.text) for rollout in one.rollouts]
    return JudgedGroup(group_id=one.id, verdicts=tuple(verify(items, Rules())))


def build(
    one: Group, *families: Family, seed: int = 0, counts=None, left_out=None, **more
) -> list[Pair]:
    wanted = dict.fromkeys(families or Family, 1.0)
    cfg = SETTINGS.model_copy(update={"families": wanted, "per_question": 50} | more)
    tallies = {"family_counts": counts, "left_out": left_out}
    return build_pairs(one, judge(one), cfg, encode=encode, seed=seed, **tallies)


def texts(pairs: list[Pair]) -> set[tuple[str, str]]:
    return {(pair.chosen.text, pair.rejected.text) for pair in pairs}


def test_accuracy_prefers_right_to_wrong():
    pairs = build(group(*ALL), Family.ACCURACY)
    assert texts(pairs) == {(GOOD, WRONG), (LONG, WRONG)}
    assert "'3' is wrong" in pairs[0].explanation


def test_penalty_prefers_clean_to_repetitive_ill_formed_and_cut_off():
    pairs = build(group(*ALL, WAVERING, cut=(6,)), Family.PENALTY)
    assert texts(pairs) == {(c, r) for c in (GOOD, LONG) for r in (LOOPING, BROKEN, WAVERING)}
    explained = {pair.rejected.text: pair.explanation for pair in pairs}
    assert "repeats itself" in explained[LOOPING]
    assert "<answer> is missing" in explained[BROKEN]
    assert "cut off" in explained[WAVERING]


def test_consistency_prefers_thinking_that_leads_to_the_answer():
    pairs = build(group(GOOD, WAVERING), Family.CONSISTENCY)
    sampled, edited = pairs  # sampled sides come first
    assert texts([sampled]) == {(GOOD, WAVERING)}
    assert edited.rejected.rollout is None
    assert "contradicts" in sampled.explanation


def test_a_contradicting_answer_is_taken_from_a_wrong_rollout():
    (pair,) = build(group(GOOD, WRONG), Family.CONSISTENCY)
    assert pair.rejected.text == GOOD.replace("<answer> 2 <", "<answer> 3 <")
    assert pair.rejected.verdict.correct is False
    assert pair.rejected.verdict.consistent is False
    assert pair.rejected.token_ids[-1] == STOP
    assert pair.explanation.startswith("The rejected response is edited")


@pytest.mark.parametrize(
    ("asked", "answer", "turned"),
    [
        (Question(id="q", text="?", kind=Kind.CHOICE, gold="B", options=("x", "y")), "B", {"A"}),
        (Question(id="q", text="?", kind=Kind.CHOICE, gold="B"), "$B$", {"$A$", "$C$", "$D$"}),
        (Question(id="q", text="?", kind=Kind.NUMERIC, gold="0"), "0", {"1"}),
        (Question(id="q", text="?", kind=Kind.NUMERIC, gold="100"), "$100$", {"$70$", "$130$"}),
        (Question(id="q", text="?", kind=Kind.NUMERIC, gold="-2.5"), "-2.5", {"-3.5", "-1.5"}),
    ],
)
def test_where_no_rollout_is_wrong_a_wrong_answer_is_made(asked, answer, turned):
    text = f"<think> {CHAIN} so {answer} </think> <answer> {answer} </answer>"
    seen = set()
    for seed in range(20):
        (pair,) = build(group(text, asked=asked), Family.CONSISTENCY, seed=seed)
        seen.add(pair.rejected.text.split()[-2])
        assert reward(asked, pair.rejected.text).accuracy < 0.9
        assert verify([Item.of(asked, pair.rejected.text)], Rules())[0].consistent is False
    assert seen == turned


def test_a_wrong_formula_is_only_taken_from_a_rollout():
    asked = Question(id="q", text="?", kind=Kind.MATH, gold=r"\frac{1}{2}")
    right = f"<think> {CHAIN} so $0.5$ </think> <answer> $0.5$ </answer>"
    wrong = f"<think> {CHAIN} so $x$ </think> <answer> $x$ </answer>"
    assert build(group(right, asked=asked), Family.CONSISTENCY) == []
    (pair,) = build(group(right, wrong, asked=asked), Family.CONSISTENCY)
    assert pair.rejected.text.endswith("<answer> $x$ </answer>")


def test_an_answer_that_only_looks_wrong_contradicts_nothing():
    """`B. red` earns no reward, but a chain that leads to B does not contradict it."""
    asked = Question(id="q", text="?", kind=Kind.CHOICE, gold="B", options=("blue", "red"))
    right = f"<think> {CHAIN} so red B </think> <answer> B </answer>"
    (pair,) = build(
        group(right, right.replace("> B <", "> B. red <"), asked=asked), Family.CONSISTENCY
    )
    assert pair.rejected.text.split()[-2] == "A"


def test_reflection_joins_wrong_and_right_thinking_with_the_turn():
    (pair,) = build(group(GOOD, WRONG), Family.REFLECTION)
    assert pair.chosen.text == (
        f"<think> f1 red 1 f2 red 2 f3 red 3 so 3 wait {CHAIN} so 2 </think> <answer> 2 </answer>"
    )
    assert pair.chosen.token_ids.tolist() == [*encode(pair.chosen.text).tolist(), STOP]
    assert pair.chosen.rollout is None
    assert pair.rejected.text == WRONG
    verdict = pair.chosen.verdict
    assert verdict.clean
    assert verdict.correct
    assert verdict.consistent
    assert verdict["reflection"].passed
    assert verify([Item.of(COUNT, pair.chosen.text)], Rules())[0].consistent


def test_reflection_keeps_the_paragraphs_of_prose():
    right = f"<think>\nFirst,\n{CHAIN}\nSo it is 2.\n</think>\n<answer>2</answer>"
    wrong = (
        "<think>\nI see many,\nf1 f2 f3 f4 f5 f6 f7 f8\nSo it is 3.\n</think>\n<answer>3</answer>"
    )
    turn = config.Pairs().reflective_turn
    (pair,) = build(group(right, wrong), Family.REFLECTION, reflective_turn=turn)
    assert f"So it is 3.\n\n{turn}\n\nFirst,\n" in pair.chosen.text
    assert pair.chosen.text.startswith("<think>\nI see many")
    assert pair.chosen.text.endswith("So it is 2.\n</think>\n<answer>2</answer>")


def test_a_wrong_rollout_that_wavers_has_no_wrong_thinking_to_reflect_on():
    wavering = WRONG.replace("so 3", "so 2")
    assert build(group(GOOD, wavering), Family.REFLECTION) == []


def test_longer_prefers_the_longer_of_two_good_chains():
    (pair,) = build(group(*ALL), Family.LONGER)
    assert texts([pair]) == {(LONG, GOOD)}
    assert "17 tokens, the rejected one 11" in pair.explanation


def test_a_chosen_side_is_always_right_consistent_and_clean():
    for pair in build(group(*ALL)):
        verdict = pair.chosen.verdict
        assert verdict.clean
        assert verdict.correct
        assert verdict.consistent


def test_without_a_good_rollout_there_is_no_pair():
    assert build(group(WRONG, WAVERING, LOOPING, BROKEN)) == []


def test_an_error_in_any_verdict_masks_the_group():
    one = group(GOOD, WRONG)
    fine = judge(one)
    failed = fine.model_copy(update={"verdicts": (fine.verdicts[0], undecided("it is down"))})
    unreachable = JudgedGroup(group_id="g", error="no answer")
    for judged in (failed, unreachable):
        assert build_pairs(one, judged, SETTINGS, encode=encode, seed=0) == []


def test_verdicts_that_do_not_fit_are_refused():
    for judged in (judge(group(GOOD)), judge(group(GOOD, WRONG, name="other"))):
        with pytest.raises(DataError, match="group g"):
            build_pairs(group(GOOD, WRONG), judged, SETTINGS, encode=encode, seed=0)


def test_a_question_gives_no_more_pairs_than_allowed():
    assert len(build(group(*ALL), per_question=3)) == 3


def test_equal_rollouts_give_equal_pairs_once():
    assert len(build(group(GOOD, GOOD, WRONG, WRONG), Family.ACCURACY)) == 1


def test_rollouts_that_differ_only_in_white_space_give_their_pair_once():
    spaced = GOOD.replace(" so 2 ", "  so 2\n")
    left_out: Counter[str] = Counter()
    assert len(build(group(GOOD, spaced, WRONG), Family.ACCURACY, left_out=left_out)) == 1
    assert left_out == {SAME_TEXT: 1}


def test_a_response_is_no_pair_with_its_own_text():
    """As when one of two equal texts was cut off just before its stop token."""
    assert build(group(GOOD, GOOD, cut=(1,)), Family.PENALTY) == []


def test_a_family_with_a_full_quota_gives_no_more_pairs():
    counts: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    quotas = {Family.ACCURACY: 1, Family.LONGER: 0}
    more = {"quotas": quotas, "counts": counts, "left_out": left_out}
    build(group(*ALL), Family.ACCURACY, Family.LONGER, Family.PENALTY, **more)
    build(group(*ALL, name="other"), Family.ACCURACY, Family.LONGER, Family.PENALTY, **more)
    assert counts == {Family.ACCURACY: 1, Family.PENALTY: 8}
    assert left_out == {QUOTA: 5}


def test_what_became_no_pair_is_counted_by_its_reason():
    left_out: Counter[str] = Counter()
    built = build(group(*ALL), Family.ACCURACY, per_question=1, left_out=left_out)
    assert len(built) == 1
    assert left_out == {ENOUGH: 1}
    left_out.clear()
    build(group(*ALL), Family.ACCURACY, max_length_ratio=1.01, left_out=left_out)
    assert left_out == {LENGTHS: 1}


def test_sides_of_very_different_length_are_left_out():
    endless = WRONG.replace("so 3", "f4 blue 3 " * 20 + "so 3")
    one = group(GOOD, endless)
    assert len(build(one, Family.PENALTY, max_length_ratio=8.0)) == 1
    assert build(one, Family.PENALTY, max_length_ratio=2.0) == []


def test_rollouts_that_no_pair_has_used_come_first():
    other = WRONG.replace("f1 red 1", "f1 red 1 f8 red 1")
    first, second = build(group(GOOD, LONG, WRONG, other), Family.ACCURACY, per_question=2)
    assert first.chosen.rollout != second.chosen.rollout
    assert first.rejected.rollout != second.rejected.rollout


def test_the_mix_follows_the_wanted_shares_over_a_run():
    wanted = {Family.CONSISTENCY: 0.5, Family.ACCURACY: 0.4, Family.REFLECTION: 0.1}
    cfg = SETTINGS.model_copy(update={"families": wanted})
    counts: Counter[str] = Counter()
    for number in range(50):
        one = group(*ALL, name=f"g{number}")
        build_pairs(one, judge(one), cfg, encode=encode, seed=0, family_counts=counts)
    assert counts == {Family.CONSISTENCY: 50, Family.ACCURACY: 40, Family.REFLECTION: 10}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(ALL), min_size=1, max_size=8), st.integers(0, 99))
def test_the_same_arguments_give_the_same_pairs_each_with_its_own_id(responses, seed):
    one = group(*responses)
    pairs = build(one, seed=seed)
    assert pairs == build(one, seed=seed)
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert all(pair.chosen.token_ids.tolist() != pair.rejected.token_ids.tolist() for pair in pairs)
    assert all(pair.prompt_ids.tolist() == [1, 2] for pair in pairs)
