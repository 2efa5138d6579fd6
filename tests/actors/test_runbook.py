"""What a run writes is enough to go on from, question by question."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from actors.runbook import RunBook
from veripo_ray import config, curriculum
from veripo_ray.records import Group, JudgedGroup, Kind, Question, Rollout
from veripo_ray.report.samples import Sample, read_samples
from veripo_ray.verifier.judges import Rules
from veripo_ray.verifier.verify import Item, verify


@pytest.fixture
def run(tmp_path: Path) -> config.Run:
    world = config.Data(tinyworld=config.TinyWorldData())
    return config.Run(
        model="tinyworld", output=tmp_path / "run", schedule=(config.GrpoPhase(),), data=world
    )


def test_a_resumed_phase_goes_on_in_its_order_with_what_it_knew(run: config.Run) -> None:
    book = RunBook(run, questions=40, resume=False)
    book.state.accuracy[[3, 8, 11]] = 1.0
    order = curriculum.phase_order(book.state.accuracy, drop_solved=0.8, seed=5)
    book.state.order, book.state.cursor = order, 16
    book.state.accuracy[order[:16]] = 0.5  # asked since the order was made
    writing = book.checkpoints.begin()
    (writing / "hf").mkdir(parents=True)
    asyncio.run(book.commit(writing))
    book.close()

    again = RunBook(run, questions=40, resume=True)
    again.close()
    assert again.state.cursor == 16
    np.testing.assert_array_equal(again.state.order, order)
    np.testing.assert_array_equal(again.state.accuracy, book.state.accuracy)


def _group(name: str) -> Group:
    question = Question(id=name, text="?", kind=Kind.NUMERIC, gold="3")
    text = "<think> f1 red 1 f2 red 2 so 3 </think> <answer> 3 </answer>"
    rollout = Rollout(
        text=text, token_ids=[1], logprobs=[0.0], finish_reason="stop", policy_version=0
    )
    return Group(id=f"g.{name}", question=question, prompt_ids=[1], rollouts=(rollout,))


def _judged(group: Group) -> JudgedGroup:
    verdicts = verify([Item.of(group.question, r.text) for r in group.rollouts], Rules())
    return JudgedGroup(group_id=group.id, verdicts=tuple(verdicts))


def test_of_an_evaluation_only_the_answers_that_the_report_shows_are_kept(run: config.Run) -> None:
    book = RunBook(run, questions=1, resume=False)
    book.begin_evaluation()
    groups = [_group(f"q{n}") for n in range(4)]
    book.begin_samples([Sample.of(groups[0].question), Sample.of(groups[3].question)])
    for batch in (groups[:2], groups[2:]):
        book.answered(batch, [_judged(group) for group in batch])
    book.add_stage("initial", dict.fromkeys(_FIGURES, 1.0))
    book.close()
    shown = {sample.id: sample.responses for sample in read_samples(run.output)}
    assert set(shown) == {"q0", "q3"}
    assert all(responses["initial"].correct for responses in shown.values())


_FIGURES = ("accuracy", "inconsistency", "mean_think_tokens", "repetition", "format")
