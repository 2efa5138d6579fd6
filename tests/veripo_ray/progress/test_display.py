"""The live display: calm in a terminal of 80 columns, brief in a log, true in both."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from veripo_ray.progress import Progress, Status
from veripo_ray.progress.panel import SHOWN_STAGES, panel
from veripo_ray.runlog import Stage


def stage(phase: str, iteration: int, accuracy: float = 0.581) -> Stage:
    return Stage(
        iteration=iteration, phase=phase, accuracy=accuracy, inconsistency=0.287,
        mean_think_tokens=1024.8, repetition=0.03, format=0.94, seconds=40_000.0, samples=192_000,
        pairs=48_000, logprob_gap_max=1.1e-6, accuracy_se=0.023, inconsistency_se=0.025,
    )  # fmt: skip


STAGES = (stage("initial", 0, 0.312), stage("grpo", 1), stage("dpo", 1), stage("grpo", 2))
STATUS = Status(
    run="quickstart", phase="grpo", iteration=2, phase_index=3, phases=3, step=5, steps=12,
    eta_seconds=95.0, tokens_per_second=5120.3, accuracy=0.61, inconsistency=0.09, judged=64,
    groups=96, pairs=1212, message="sampling 16 questions", stages=STAGES[:3],
)  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def log_console() -> Console:
    return Console(file=io.StringIO(), width=80, force_terminal=False)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(status: Status, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(panel(status, 148.0))
    return output(console)


def test_the_panel_says_where_the_run_is_and_what_it_measures() -> None:
    text = shown(STATUS)
    for part in (
        "quickstart", "grpo 2", "phase 3 of 3", "step 5 of 12", "0.61", "0.09", "5,120", "64/96",
        "1,212", "sampling 16 questions", "2m 28s", "about 1m 35s left", "0.581 ±.023",
    ):  # fmt: skip
        assert part in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_panel_fits_and_keeps_its_height(width: int) -> None:
    heights = set()
    for step in range(13):
        lines = shown(replace(STATUS, step=step, tokens_per_second=10.0**step), width).splitlines()
        heights.add(len(lines))
        assert max(map(len, lines)) <= min(width, 80)
    assert len(heights) == 1


def test_what_is_not_known_is_not_invented() -> None:
    text = shown(Status(run="quickstart", phase="starting", message="bringing up 4 actors"))
    assert "starting" in text
    assert "0.00" not in text
    assert "left" not in text
    assert "step" not in text


def test_many_stages_do_not_push_the_panel_off_the_screen() -> None:
    stages = tuple(stage("grpo", number) for number in range(1, 40))
    text = shown(replace(STATUS, stages=stages))
    assert len(text.splitlines()) <= 15 + SHOWN_STAGES
    assert "grpo 39" in text


def test_markup_in_messages_and_names_is_shown_as_it_is() -> None:
    assert "[red]odd[/red]" in shown(replace(STATUS, message="[red]odd[/red]"))


def test_figures_of_no_responses_are_shown_as_unknown() -> None:
    blank = dict.fromkeys(("accuracy", "inconsistency", "mean_think_tokens", "format"))
    unknown = STAGES[0].model_copy(update=blank)
    console = log_console()
    with Progress(console) as progress:
        progress.update(replace(STATUS, stages=(unknown,)))
        progress.finish((unknown,), report=None, checkpoint=None, verdict="finished")
    assert "None" not in output(console) + shown(replace(STATUS, stages=(unknown,)))


def test_an_evaluation_is_not_numbered_like_a_phase() -> None:
    assert replace(STATUS, phase="evaluation").label == "evaluation"
    assert STATUS.label == "grpo 2"


def test_a_log_gets_a_line_at_most_every_few_seconds() -> None:
    clock, console = Clock(), log_console()
    with Progress(console, line_every_s=10, now=clock) as progress:
        for second in range(25):
            clock.time = 100.0 + second
            progress.update(replace(STATUS, step=second, steps=40, stages=()))
    lines = output(console).splitlines()
    assert [line.split("·")[0] for line in lines] == [
        f"quickstart: grpo 2 (3/3) step {step}/40 " for step in (0, 10, 20)
    ]


def test_a_log_gets_news_at_once_and_each_stage_once() -> None:
    clock, console = Clock(), log_console()
    with Progress(console, line_every_s=1000, now=clock) as progress:
        progress.update(replace(STATUS, stages=STAGES[:1]))
        progress.update(replace(STATUS, stages=STAGES[:1], step=6))
        progress.update(replace(STATUS, stages=STAGES[:2], phase="evaluation", message=""))
        progress.update(replace(STATUS, stages=STAGES[:2], phase="evaluation", message="", step=9))
    lines = output(console).splitlines()
    assert [line.split(": ")[1][:14] for line in lines] == [
        "after initial",
        "grpo 2 (3/3) s",
        "after grpo 1",
        "evaluation (3/",
    ]
    assert "accuracy 0.312 ±.023" in lines[0]


def test_a_line_of_a_log_holds_only_what_is_known_and_is_not_wrapped() -> None:
    console = log_console()
    with Progress(console) as progress:
        progress.update(Status(run="night", phase="starting", message="m" * 100))
    assert output(console) == f"night: starting · {'m' * 100}\n"


def test_a_terminal_is_left_clean_with_the_final_table() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with Progress(console) as progress:
        assert progress.status is None
        progress.update(STATUS)
        progress.finish(
            STAGES, report=Path("runs/q/report.html"), checkpoint=Path("runs/q/c/7"), verdict="done"
        )
    text = output(console)
    assert "\x1b[?25h" in text  # the cursor is back
    assert text.index("phase 3 of 3") < text.index("runs/q/report.html")


def test_the_final_table_has_every_stage_in_80_columns() -> None:
    console = log_console()
    Progress(console).finish(
        STAGES, report=Path("r.html"), checkpoint=None, verdict="stopped by SIGTERM"
    )
    text = output(console)
    for part in ("initial", "grpo 1", "dpo 1", "grpo 2", "192,000", "1e-06", "11h 06m", "1024.8"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[-1] == "stopped by SIGTERM"
    assert "r.html" in text
    assert "checkpoint" not in text


def test_a_run_without_stages_ends_with_its_verdict_alone() -> None:
    console = log_console()
    Progress(console, now=Clock()).finish((), report=None, checkpoint=None, verdict="stopped")
    assert output(console).split() == ["took", "0s", "stopped"]
