"""The report's sentences claim what the numbers allow, and no more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.report import words
from veripo_ray.runlog import Judges, Stage


def stage(
    phase: str, accuracy: float, inconsistency: float | None = 0.2, se: float = 0.02
) -> Stage:
    return Stage(
        iteration=0 if phase == "initial" else 1, phase=phase, accuracy=accuracy,
        inconsistency=inconsistency, mean_think_tokens=10.0, repetition=0.0, format=1.0,
        accuracy_se=se, inconsistency_se=None if inconsistency is None else se,
        mean_think_tokens_se=0.1,
    )  # fmt: skip


def test_a_change_within_two_errors_is_not_called_a_change() -> None:
    found = words.change(stage("initial", 0.50), stage("grpo", 0.55), "accuracy")
    assert found is not None
    assert found.verdict == "unclear"
    assert found.clause == "accuracy did not change beyond its error (+5.0 ± 2.8 points)"


def test_less_inconsistency_is_better_and_less_accuracy_worse() -> None:
    before, after = stage("initial", 0.6, 0.4), stage("dpo", 0.4, 0.1)
    inconsistency = words.change(before, after, "inconsistency")
    accuracy = words.change(before, after, "accuracy")
    assert inconsistency is not None
    assert accuracy is not None
    assert (inconsistency.verdict, accuracy.verdict) == ("better", "worse")


def test_longer_thinking_is_neither_better_nor_worse() -> None:
    longer = stage("grpo", 0.5).model_copy(update={"mean_think_tokens": 20.0})
    found = words.change(stage("initial", 0.5), longer, "mean_think_tokens")
    assert found is not None
    assert found.verdict == "neutral"
    assert found.amount == "+10.0 ± 0.1 tokens"


def test_a_measure_that_was_not_taken_is_left_out_of_the_lead() -> None:
    lead = words.lead([stage("initial", 0.3, None), stage("grpo", 0.6, 0.2)])
    assert lead == "In one phase, grpo 1, accuracy rose by 30.0 ± 2.8 points."


def test_no_phase_is_praised_for_a_change_within_its_error() -> None:
    lead = words.lead([stage("initial", 0.5), stage("grpo", 0.51), stage("dpo", 0.52)])
    assert "largest" not in lead


def test_the_phase_of_the_largest_gain_is_named() -> None:
    lead = words.lead([stage("initial", 0.3), stage("grpo", 0.6), stage("dpo", 0.4)])
    assert "The largest gain in accuracy came with grpo 1 (+30.0 ± 2.8 points)." in lead


def test_a_held_out_judge_is_told_from_the_one_that_curates() -> None:
    apart = words.judge_sentence(Judges(curation="rules", evaluation="qwen3"))
    assert "“qwen3”, which took no part in training" in apart
    assert "yardstick" in words.judge_sentence(Judges(curation="rules", evaluation="rules"))


def test_clips_decoded_more_than_once_are_not_called_decoded_once() -> None:
    assert "decoded 200 and encoded 100 times" in words.video_sentence(100, 200, 100)
    assert "decoded 100 times; the vision tower, which learned" in words.video_sentence(100, 100, 0)


@given(st.floats(-100, 100))
def test_a_sign_is_shown_exactly_when_the_shown_number_is_not_zero(value: float) -> None:
    text = words.signed(value)
    assert float(text.replace(words.MINUS, "-")) == float(f"{value:.1f}")
    assert text.startswith(("+", words.MINUS)) == (float(f"{value:.1f}") != 0)
