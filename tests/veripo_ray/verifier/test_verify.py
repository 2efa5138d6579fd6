"""Each check says what it found, where, and why; a failure is an error and never a verdict."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray import config
from veripo_ray.errors import ResourceError
from veripo_ray.records import CHECKS, Kind, Question
from veripo_ray.verifier.judges import Case, Judgement, Rules
from veripo_ray.verifier.verify import Item, undecided, verify

CHAIN = "f1 red 1 f2 blue 1 f3 red 2"


def item(response: str, gold: str = "2", kind: Kind = Kind.NUMERIC) -> Item:
    return Item(question_id="q1", kind=kind, gold=gold, response=response)


def respond(thinking: str, answer: str = "2") -> str:
    return f"<think> {thinking} </think> <answer> {answer} </answer>"


def one(response: str, **more):
    return verify([item(response, **more)], Rules())[0]


class Broken:
    """A judge that fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    name = "broken"

    async def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        if self.error:
            raise self.error
        return []


def test_a_good_response_passes_every_check_that_applies():
    verdict = one(respond(f"{CHAIN} so 2"))
    assert [check.name for check in verdict.checks] == list(CHECKS)
    assert verdict.clean
    assert verdict.correct
    assert verdict.consistent
    assert verdict.error is None


def test_a_contradictory_response_is_told_apart_by_its_reason_and_evidence():
    text = respond(f"{CHAIN} so 3")
    check = one(text)["consistency"]
    assert check.passed is False
    assert check.reason == "the thinking concludes '3', which contradicts the answer '2'"
    assert text[check.evidence[0].start : check.evidence[0].end].strip() == "so 3"


def test_the_answer_is_pointed_at():
    text = respond(f"{CHAIN} so 3", "3")
    check = one(text)["accuracy"]
    assert (check.passed, check.value) == (False, 0.1)
    assert text[check.evidence[0].start : check.evidence[0].end] == " 3 "


def test_a_number_close_enough_counts_as_right():
    checks = config.Checks(numeric_correct=0.5)
    close = item(respond(f"{CHAIN} so 12", "12"), gold="10")
    assert verify([close], Rules())[0].correct is False
    assert verify([close], Rules(), checks)[0].correct is True


def test_an_ill_formed_response_is_measured_but_not_judged():
    verdict = one(f"<think> {CHAIN} so 2")
    assert verdict["format"].reason == "</think> is missing"
    assert verdict["length"].value == 11
    assert verdict.correct is False
    assert verdict.consistent is None
    assert verdict.error is None


@pytest.mark.parametrize(("words", "passed"), [(7, False), (8, True), (20, True), (21, False)])
def test_length_is_bounded_on_both_sides(words, passed):
    checks = config.Checks(min_think_tokens=8, max_think_tokens=20)
    text = respond(" ".join(f"w{n}" for n in range(words)))
    (verdict,) = verify([item(text)], Rules(), checks)
    assert verdict["length"].passed is passed
    assert str(words) in verdict["length"].reason


def test_tokens_are_counted_by_the_given_counter():
    assert verify([item("x")], Rules(), count_tokens=len)[0]["length"].value == 1


def test_repetition_shows_what_is_repeated():
    text = respond("look again " * 9)
    check = one(text)["repetition"]
    assert check.passed is False
    assert "'look again" in check.reason
    assert text[check.evidence[0].start :].startswith("look again")


@pytest.mark.parametrize(
    ("thinking", "passed", "count"),
    [
        ("so 3 wait f1 red so 2", True, 1),
        ("it turns left. Let me double-check this. Right.", True, 1),
        ("However, wait: re-checking it, however. It is 3", True, 4),
        (f"{CHAIN} so 2", None, 0),
        ("we await waiters", None, 0),
        ("wait", False, 0),
        ("f1 red so 2 wait", False, 0),
    ],
)
def test_reflection_is_found_and_must_stand_in_its_place(thinking, passed, count):
    check = one(respond(thinking))["reflection"]
    assert check.passed is passed
    if thinking.startswith("However"):
        count -= 1  # the one at the very beginning has nothing to reconsider
    assert check.value == count


def test_reflection_outside_the_thinking_is_misplaced():
    assert one(respond(CHAIN) + " wait, no")["reflection"].passed is False


def test_reflective_words_are_a_setting():
    text = respond("eins, moment, zwei")
    checks = config.Checks(reflective_words=("moment",))
    assert verify([item(text)], Rules(), checks)[0]["reflection"].passed is True
    none = config.Checks(reflective_words=())
    assert verify([item(text)], Rules(), none)[0]["reflection"].passed is None


def test_a_bad_item_has_its_own_error_and_spoils_no_other():
    good = item(respond(f"{CHAIN} so 2"))
    bad = item(respond(f"{CHAIN} so 2"), gold="many")
    verdicts = verify([good, bad, good], Rules())
    assert verdicts[0] == verdicts[2]
    assert verdicts[0].error is None
    assert verdicts[1].correct is None
    assert "question q1" in verdicts[1].error


@pytest.mark.parametrize(
    "broken", [Broken(ResourceError("it is down")), Broken(KeyError("bug")), Broken()]
)
def test_a_judge_that_fails_is_an_error_and_never_an_inconsistency(broken):
    verdict = verify([item(respond(f"{CHAIN} so 3"))], broken)[0]
    assert verdict.consistent is None
    assert verdict.error.startswith("consistency: ")
    assert verdict.correct is True


def test_a_judge_never_sees_the_gold_answer():
    assert "gold" not in Case.__dataclass_fields__


def test_an_undecided_verdict_has_an_error_in_every_check():
    verdict = undecided("it is no item")
    assert [check.name for check in verdict.checks] == list(CHECKS)
    assert all(c.passed is None and c.error == "it is no item" for c in verdict.checks)


def test_an_item_is_made_from_a_question():
    asked = Question(id="q", text="which?", kind=Kind.CHOICE, gold="A", options=("red", "blue"))
    made = Item.of(asked, "r")
    assert (made.question, made.options, made.response) == ("which?", ("red", "blue"), "r")


@given(st.lists(st.text(), max_size=5), st.sampled_from([(Kind.CHOICE, "A"), (Kind.NUMERIC, "1")]))
def test_any_response_gets_a_verdict(responses, asked):
    kind, gold = asked
    verdicts = verify([item(text, gold, kind) for text in responses], Rules())
    assert len(verdicts) == len(responses)
    assert all(verdict.error is None for verdict in verdicts)


def test_the_library_can_be_called_in_the_middle_of_an_event_loop():
    async def notebook() -> list:
        return verify([item(respond(f"{CHAIN} so 2"))], Rules())

    assert asyncio.run(notebook()) == verify([item(respond(f"{CHAIN} so 2"))], Rules())
