"""A run's folder as a real run leaves it, written by the same writers, with invented numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from veripo_ray import config, recipe
from veripo_ray.journal import RunJournals
from veripo_ray.records import (
    Check,
    Family,
    JudgedGroup,
    Kind,
    Pair,
    Question,
    Response,
    Span,
    Verdict,
)
from veripo_ray.report.samples import Sample, SampleResponse, add_stage_samples, write_samples
from veripo_ray.runlog import (
    BadItem,
    Cost,
    Judges,
    MetricsLog,
    SecondsPerSample,
    Stage,
    Summary,
    write_summary,
)

SCHEDULE = (config.GrpoPhase(), config.DpoPhase(), config.GrpoPhase(lr=5e-7))
CHAINS = {
    "initial": ("f1 red f4 blue so red", "C"),
    "grpo 1": ("f1 red f2 red f3 blue f5 green so green", "B"),
    "dpo 1": ("f1 red f2 red f3 blue f4 blue f5 green f6 green f7 blue f8 blue so blue", "A"),
    "grpo 2": ("f1 red f3 blue f5 green so green wait f7 blue f8 blue so blue", "A"),
}
HOSTILE = (
    '<script>fetch("https://evil.example/")</script><img src=x onerror=alert(1)> &amp; \x00 </pre>'
)


def response_text(think: str, answer: str) -> str:
    return f"<think> {think} </think> <answer> {answer} </answer>"


def question(name: str = "last-7", text: str = "which colour is seen last ?") -> Question:
    options = ("blue", "green", "red", "yellow")
    return Question(id=name, text=text, kind=Kind.CHOICE, gold="A", options=options)


def frames(count: int = 16, height: int = 28, width: int = 56) -> np.ndarray:
    """A coloured square that moves over a dark field, [count, height, width, 3] uint8."""
    rng = np.random.default_rng(0)
    film = rng.integers(18, 30, (count, height, width, 3), dtype=np.uint8)
    colors = [(210, 60, 50), (60, 90, 210), (60, 180, 80), (60, 90, 210)]
    for t in range(count):
        left = width // 8 if t // 4 % 2 == 0 else width * 5 // 8
        film[t, height // 4 : height * 3 // 4, left : left + width // 4] = colors[t * 4 // count]
        film[t, -height // 7 :, : (t + 1) * width // count] = 200
    return film


def verdict(consistent: bool | None = True, error: str | None = None) -> Verdict:
    reason = "the thinking concludes “blue A”, the answer is “A”"
    if not consistent:
        reason = "the thinking concludes “red C”, the answer is “A”"
    return Verdict(
        checks=(
            Check(name="format", passed=True, reason="each tag once, in order"),
            Check(name="accuracy", passed=True, value=1.0, reason="gold is A"),
            Check(name="length", passed=True, value=17.0, reason="17 tokens of thinking"),
            Check(name="repetition", passed=True, value=0.0, reason="no 8-gram occurs twice"),
            Check(name="reflection", passed=None, reason="no reflective turn"),
            Check(
                name="consistency",
                passed=consistent,
                reason=reason,
                evidence=(Span(start=8, end=20),),
                error=error,
            ),
        )
    )


def pair(family: Family, number: int, rejected: str | None = None) -> Pair:
    think, answer = CHAINS["dpo 1"]
    tokens = np.arange(12, dtype="<i4")
    return Pair(
        id=f"{family.value}-{number}",
        group_id=f"g{number}",
        question=question(),
        prompt_ids=tokens,
        family=family,
        chosen=Response(
            text=response_text(think, answer),
            token_ids=tokens,
            rollout=number % 8,
            verdict=verdict(),
            reference_logprob=-14.25,
        ),
        rejected=Response(
            text=rejected or response_text(think.replace("so blue", "so red C"), answer),
            token_ids=tokens[:9],
            rollout=None,
            verdict=verdict(consistent=False),
            reference_logprob=-19.5,
        ),
        explanation="Both answers are right, but the rejected thinking concludes another one.",
    )


def stages() -> tuple[Stage, ...]:
    rows = [
        (0, "initial", 0.312, 0.412, 0.201, 21.4, 0.041, 0.951, 12.0, 0, 0, None),
        (1, "grpo", 0.581, 0.287, 0.430, 24.8, 0.062, 0.968, 71.0, 1536, 348, 1.1e-6),
        (1, "dpo", 0.596, 0.062, 0.561, 26.1, 0.008, 0.942, 14.0, 696, 348, 1.4e-6),
        (2, "grpo", 0.655, 0.081, 0.609, 25.7, 0.012, 0.981, 66.0, 1440, 301, 1.2e-6),
    ]
    return tuple(_stage(*row) for row in rows)


def _stage(*row) -> Stage:
    iteration, phase, accuracy, inconsistency, both, think, repetition, form, *rest = row
    seconds, samples, pairs, gap = rest
    n = 400
    return Stage(
        iteration=iteration, phase=phase, accuracy=accuracy, inconsistency=inconsistency,
        correct_and_consistent=both, mean_think_tokens=think, repetition=repetition, format=form,
        seconds=seconds, samples=samples, pairs=pairs, logprob_gap_max=gap, n=n,
        accuracy_se=_se(accuracy, n), inconsistency_se=_se(inconsistency, n),
        correct_and_consistent_se=_se(both, n), mean_think_tokens_se=0.4,
        repetition_se=_se(repetition, n), format_se=_se(form, n),
    )  # fmt: skip


def _se(share: float, n: int) -> float:
    return (share * (1 - share) / n) ** 0.5


def summary(finished: bool = True) -> Summary:
    return Summary(
        stages=stages(),
        seconds_per_sample=SecondsPerSample(grpo=0.0461, dpo=0.0187),
        phase_switch_seconds=0.84,
        decodes=912,
        encodes=912,
        videos=912,
        finished=finished,
        model="tinyworld",
        cost={
            "grpo": Cost(samples=2976, parts={"sampling": 92.0, "rewards": 1.2, "learning": 44.0}),
            "dpo": Cost(
                samples=696,
                parts={"verification": 2.1, "pairs": 0.6, "reference": 3.1, "learning": 7.2},
            ),
        },
        judges=Judges(curation="rules", evaluation="rules"),
        bad_items=(
            BadItem(name="clips/0041.mp4", reason="0 bytes"),
            BadItem(name="clips/<b>0077</b>.mp4", reason="no video stream, only audio"),
        ),
        left_out=2,
        versions={"torch": "2.9.0", "vllm": "0.12.0", "ray": "2.51.0", "deepspeed": "0.18.2"},
        started="2026-02-03T21:14:09Z",
        checkpoint="checkpoints/000041",
    )


def write_run(folder: Path) -> Path:
    """The whole folder: config, summary, metrics, journals, samples."""
    folder.mkdir(parents=True, exist_ok=True)
    data = config.Data(tinyworld=config.TinyWorldData())
    run = config.Run(model="tinyworld", data=data, schedule=SCHEDULE)
    (folder / "config.yaml").write_text(recipe.dump(run))
    write_summary(folder, summary())
    write_metrics(folder)
    journals = RunJournals(folder)
    for family, count in zip(Family, (90, 41, 160, 35, 22), strict=True):
        journals.pairs.append(pair(family, number) for number in range(count))
    journals.pairs.append([pair(Family.PENALTY, 100 + n, rejected=HOSTILE) for n in range(200)])
    journals.verdicts.append(
        JudgedGroup(group_id=f"g{n}", verdicts=(verdict(), verdict(False))) for n in range(60)
    )
    undecided = verdict(None, error="the judge did not answer within 60 s")
    journals.verdicts.append([JudgedGroup(group_id="g60", verdicts=(undecided,))])
    journals.verdicts.append([JudgedGroup(group_id="g61", error="verifier unreachable")])
    write_sample_file(folder)
    return folder


def write_metrics(folder: Path) -> None:
    rng = np.random.default_rng(1)
    with MetricsLog(folder, tensorboard=False) as log:
        for iteration, phase, steps in ((1, "grpo", 12), (1, "dpo", 22), (2, "grpo", 12)):
            for step in range(1, steps + 1):
                done, noise = step / steps, rng.normal(0, 0.02)
                values = {"loss": 0.02 * rng.normal(), "grad_norm": 0.8 + 0.2 * rng.random()}
                if phase == "grpo":
                    values |= {"reward": 0.8 + 0.3 * done + noise, "accuracy": 0.35 + 0.25 * done}
                    values |= {"tokens_per_second": 5000 + 900 * rng.random()}
                    values |= {"logprob_gap_max": 10 ** rng.uniform(-6.5, -5.7)}
                else:
                    values |= {"loss": 0.69 - 0.4 * done + noise, "margin": 2 * done + noise}
                log.append(phase, iteration, step, values, time=1000.0 + step)


def write_sample_file(folder: Path) -> None:
    film, seconds = frames(), np.arange(16) / 8
    hostile = question("hostile", "what does </p><script>alert(1)</script> show ?")
    write_samples(folder, [Sample.of(question(), film, seconds), Sample.of(hostile)])
    for label, (think, answer) in CHAINS.items():
        right = answer == "A"
        mine = SampleResponse(
            text=response_text(think, answer), correct=right, consistent=right or label == "initial"
        )
        theirs = SampleResponse(text=f"{label} {HOSTILE}", correct=None, consistent=None)
        add_stage_samples(folder, label, {"last-7": mine, "hostile": theirs})


@pytest.fixture
def hostile() -> str:
    """Model output that would take over a careless page."""
    return HOSTILE


@pytest.fixture
def film() -> Callable[..., np.ndarray]:
    return frames


@pytest.fixture
def a_question() -> Question:
    return question()


@pytest.fixture
def run_summary() -> Summary:
    return summary()


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run's folder, to be changed at will."""
    return write_run(tmp_path / "quickstart")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for tests that only read it."""
    return write_run(tmp_path_factory.mktemp("run") / "quickstart")
