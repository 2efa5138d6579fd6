"""Whatever a policy may write is parsed, checked and judged, and no item has an error for it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veripo_ray.records import Kind
from veripo_ray.scoring import answers
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.verify import Item, verify

LOOK_ALIKES = (
    *("\uff1cthink\uff1e", "\uff1c/think\uff1e", "<\u0430nswer>", "</\u0430nswer>"),  # Cyrillic a
    *("<th\u200dink>", "</\u200bthink>", "\u2039answer\u203a", "< think >", "<THINK>", "<think/>"),
    *("&lt;think&gt;", "<t\u0307hink>", "<answer\u00a0>", "\ufeff<answer>", "<\u202ethink>"),
)
PIECES = st.sampled_from(
    [
        *answers.TAGS,
        *LOOK_ALIKES,
        *(
            "<think",
            "think>",
            "<",
            ">",
            "</",
            "<answer></answer>",
            "<think><think>",
            "</think>" * 3,
        ),
        *("so B", "the answer is 3", "wait", "A", "\uff21", "\u0410", "3", "\uff13", "10^{999}"),
        *("\ud800", "\x00", "\u200d", "\n", " ", "\\boxed{", "$", "9" * 400),
    ]
)
CASES = [(Kind.CHOICE, "A", ("red", "blue")), (Kind.NUMERIC, "3", ())]


@settings(max_examples=300)
@given(st.lists(PIECES, max_size=20).map("".join) | st.text(), st.sampled_from(CASES))
def test_tags_unclosed_nested_or_alike_are_read_without_an_error(response, case):
    kind, gold, options = case
    item = Item(kind=kind, gold=gold, options=options, response=response)
    (verdict,) = verify([item], Rules())
    assert verdict.error is None
    assert all(
        0 <= span.start <= span.end <= len(response)
        for check in verdict.checks
        for span in check.evidence
    )


@given(st.lists(PIECES, max_size=20).map("".join))
def test_the_format_holds_only_with_one_of_each_real_tag(response):
    parts = answers.split(response)
    assert not parts.well_formed or all(response.count(tag) == 1 for tag in answers.TAGS)


@pytest.mark.parametrize("tag", LOOK_ALIKES)
def test_a_look_alike_of_a_tag_is_no_tag(tag):
    closing = "/" in tag
    real = {False: ("<think>", "<answer>"), True: ("</think>", "</answer>")}[closing]
    good = "<think>so A</think><answer>A</answer>"
    for one in real:
        assert not answers.split(good.replace(one, tag)).well_formed or one in tag


def test_a_look_alike_inside_the_thinking_is_text():
    parts = answers.split("<think>\uff1canswer\uff1eA</think><answer>B</answer>")
    assert (parts.problem, parts.answer_text) == ("", "B")


@pytest.mark.parametrize("piece", [*answers.TAGS, "<think><answer>", "</think><", *LOOK_ALIKES[:5]])
@pytest.mark.parametrize(("kind", "gold", "options"), CASES)
def test_a_megabyte_of_tags_gets_a_verdict(piece, kind, gold, options):
    response = piece * (2**20 // len(piece))
    item = Item(kind=kind, gold=gold, options=options, response=response)
    (verdict,) = verify([item], Rules())
    assert verdict.error is None
    assert verdict["format"].passed is False
