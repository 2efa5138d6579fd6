"""A committee's rules, and what becomes of a case when a member fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.errors import DataError
from veripo_ray.records import Kind
from veripo_ray.verifier.judges import Case, Judgement
from veripo_ray.verifier.judges.committee import Committee

CASE = Case("?", Kind.CHOICE, (), "so B", "B")
VOTES = (True, False, None)
FAILED = "failed"


class Says:
    """A judge whose mind is made up."""

    def __init__(self, name: str, votes: Sequence[bool | str | None]) -> None:
        self.name, self._votes = name, votes

    async def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        return [
            Judgement.failed("out of order")
            if vote == FAILED
            else Judgement(vote, f"because of {self.name}", (0, len(self.name)))
            for vote in self._votes
        ]


class Raises:
    name = "raises"

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        raise self._error


def decide(rule: str, votes: Sequence[bool | str | None]) -> Judgement:
    members = [Says(f"m{number}", [vote]) for number, vote in enumerate(votes)]
    (judgement,) = asyncio.run(Committee(members, rule).judge([CASE]))
    return judgement


@pytest.mark.parametrize(
    ("votes", "unanimous", "majority", "any_no"),
    [
        ((True, True), True, True, True),
        ((False, False), False, False, False),
        ((True, False), None, None, False),
        ((True, None), None, True, True),
        ((False, None), None, False, False),
        ((None, None), None, None, None),
        ((True, True, False), None, True, False),
        ((True, False, False), None, False, False),
    ],
)
def test_the_rules(votes, unanimous, majority, any_no):
    assert decide("unanimous", votes).consistent is unanimous
    assert decide("majority", votes).consistent is majority
    assert decide("any_no", votes).consistent is any_no


@given(
    st.sampled_from(["unanimous", "majority", "any_no"]),
    st.lists(st.sampled_from([*VOTES, FAILED]), min_size=2, max_size=4),
)
def test_a_failed_member_is_done_without_only_where_its_word_could_change_nothing(rule, votes):
    whatever = product(*(VOTES if vote == FAILED else (vote,) for vote in votes))
    outcomes = {decide(rule, chosen).consistent for chosen in whatever}
    judgement = decide(rule, votes)
    if len(outcomes) == 1:
        assert judgement.error is None
        assert {judgement.consistent} == outcomes
    else:
        assert judgement.consistent is None
        assert "out of order" in judgement.error


@pytest.mark.parametrize(
    ("rule", "votes", "consistent"),
    [
        ("any_no", (False, FAILED), False),
        ("majority", (True, True, FAILED), True),
        ("unanimous", (True, False, FAILED), None),
    ],
)
def test_what_is_settled_without_the_failed_member_is_decided(rule, votes, consistent):
    judgement = decide(rule, votes)
    assert (judgement.consistent, judgement.error) == (consistent, None)
    assert "failed (out of order)" in judgement.reason


@pytest.mark.parametrize("rule", ["unanimous", "majority", "any_no"])
def test_a_committee_that_fails_whole_is_an_error(rule):
    judgement = decide(rule, (FAILED, FAILED))
    assert judgement.consistent is None
    assert judgement.error == ("the committee cannot do without m0: out of order; m1: out of order")


def test_the_reason_names_who_said_what_and_the_evidence_is_of_one_who_agrees():
    judgement = decide("any_no", (True, False))
    assert judgement.reason == (
        "inconsistent by the rule any_no; m0: consistent (because of m0); "
        "m1: inconsistent (because of m1)"
    )
    assert judgement.evidence == (0, 2)


def test_cases_are_decided_each_by_itself():
    members = [Says("a", [True, FAILED, False]), Says("b", [True, True, False])]
    fine, failed, bad = asyncio.run(Committee(members, "unanimous").judge([CASE] * 3))
    assert (fine.consistent, bad.consistent) == (True, False)
    assert (failed.consistent, failed.error is not None) == (None, True)


@pytest.mark.parametrize(
    ("error", "shown"),
    [(DataError("no model"), "no model"), (KeyError("x"), "KeyError: 'x'")],
)
def test_a_member_that_raises_failed(error, shown):
    committee = Committee([Says("a", [True]), Raises(error)], "unanimous")
    (judgement,) = asyncio.run(committee.judge([CASE]))
    assert judgement.error == f"the committee cannot do without raises: {shown}"


def test_a_member_that_leaves_cases_out_failed():
    committee = Committee([Says("a", [True, True]), Says("b", [True])], "unanimous")
    judgements = asyncio.run(committee.judge([CASE] * 2))
    assert all("1 judgements for 2 cases" in judgement.error for judgement in judgements)


def test_members_work_side_by_side_and_are_cancelled_together():
    cancelled: list[str] = []

    class Waits:
        def __init__(self, name: str, mine: asyncio.Event, others: asyncio.Event) -> None:
            self.name, self._mine, self._others = name, mine, others

        async def judge(self, cases: Sequence[Case]) -> list[Judgement]:
            self._mine.set()
            try:
                await self._others.wait()
                both.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(self.name)
                raise
            raise AssertionError

    both, a, b = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def go() -> None:
        committee = Committee([Waits("a", a, b), Waits("b", b, a)], "majority")
        judging = asyncio.create_task(committee.judge([CASE]))
        await both.wait()
        judging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await judging

    asyncio.run(go())
    assert sorted(cancelled) == ["a", "b"]
