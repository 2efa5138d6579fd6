"""A language model's yes or no becomes a judgement that a person can read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from veripo_ray import config
from veripo_ray.errors import ConfigError
from veripo_ray.records import Kind
from veripo_ray.verifier.judges import Answered, Case, Judgement
from veripo_ray.verifier.judges.yes_no import YesNo

CASE = Case("Which car?", Kind.CHOICE, ("red", "blue"), "It is blue. So the answer is B.", "$A$")


class Model:
    """Answers in order, and keeps what it was asked."""

    def __init__(self, *answers: Answered | str) -> None:
        self.answers, self.prompts = answers, []

    async def __call__(self, prompts: Sequence[str]) -> list[Answered | str]:
        self.prompts += prompts
        return list(self.answers)


def judged(model: Model, *cases: Case, **settings) -> list[Judgement]:
    return asyncio.run(YesNo("vllm", model, config.YesNo(**settings)).judge(cases))


@pytest.mark.parametrize(
    ("probability", "threshold", "undecided", "consistent"),
    [
        (0.5, 0.5, 0.0, True),
        (0.49, 0.5, 0.0, False),
        (0.7, 0.8, 0.0, False),
        (0.7, 0.8, 0.2, None),
        (0.99, 0.8, 0.2, None),
        (0.59, 0.8, 0.2, False),
        (1.0, 1.0, 0.0, True),
    ],
)
def test_the_threshold_decides_and_near_it_nothing_is_decided(
    probability, threshold, undecided, consistent
):
    model = Model(Answered.likely(probability))
    (judgement,) = judged(model, CASE, threshold=threshold, undecided=undecided)
    assert (judgement.consistent, judgement.error) == (consistent, None)
    assert judgement.probability == probability


def test_where_only_the_word_is_known_it_decides():
    yes, no = judged(Model(Answered(True), Answered(False)), CASE, CASE, threshold=0.9)
    assert (yes.consistent, no.consistent) == (True, False)
    assert yes.probability is None


def test_the_reason_is_a_sentence_and_the_evidence_the_conclusion():
    (judgement,) = judged(Model(Answered.likely(0.125)), CASE, undecided=0.1)
    assert judgement.reason == (
        "the judge vllm says that the answer '$A$' does not follow from the thinking: "
        "P(yes) = 0.125, threshold 0.5 +- 0.1"
    )
    start, end = judgement.evidence
    assert "answer is B" in CASE.thinking[start:end]


def test_an_error_is_its_cases_own_and_no_judgement():
    fine, failed = judged(Model(Answered.likely(0.9), "it is down"), CASE, CASE)
    assert (fine.consistent, fine.error) == (True, None)
    assert (failed.consistent, failed.error, failed.probability) == (None, "it is down", None)


def test_where_there_is_nothing_to_compare_nobody_is_asked():
    model = Model(Answered.likely(0.9))
    cases = [Case("?", Kind.CHOICE, (), " \n", "B"), CASE, Case("?", Kind.CHOICE, (), "so B", " ")]
    thoughtless, asked, silent = judged(model, *cases)
    assert len(model.prompts) == 1
    assert thoughtless.reason == "not asked, since the thinking is empty"
    assert silent.reason == "not asked, since the answer is empty"
    assert {thoughtless.consistent, silent.consistent, silent.error} == {None}
    assert asked.consistent is True


def test_the_model_is_asked_by_the_template_of_the_settings(tmp_path):
    (tmp_path / "short.txt").write_text("{thinking}\n{answer}\nDoes it follow?")
    model = Model(Answered.likely(0.9))
    judged(model, CASE, prompt=str(tmp_path / "short.txt"))
    assert model.prompts == ["> It is blue. So the answer is B.\n> $A$\nDoes it follow?"]


def test_a_template_that_is_not_there_is_named_before_anything_is_judged():
    with pytest.raises(ConfigError, match="consitency") as error:
        YesNo("vllm", Model(), config.YesNo(prompt="consitency"))
    assert "consistency" in error.value.fix
