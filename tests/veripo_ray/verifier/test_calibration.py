"""A judge's figures are what their definitions say, and the command shows and writes them all."""

from __future__ import annotations

import asyncio
import io
import json
import math
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from veripo_ray import cli
from veripo_ray.errors import ConfigError, DataError
from veripo_ray.records import Kind
from veripo_ray.verifier.calibration import figures, thresholds
from veripo_ray.verifier.calibration.command import calibrate
from veripo_ray.verifier.calibration.figures import Counts, Figure
from veripo_ray.verifier.calibration.measure import Cost, measure, summarise
from veripo_ray.verifier.calibration.plot import draw
from veripo_ray.verifier.judges import Case, Judgement
from veripo_ray.verifier.labelled import Labelled, load

LABELS = st.booleans()
WORDS = st.sampled_from([True, False, None])
PROBABILITIES = st.floats(0, 1) | st.sampled_from([0.0, 0.1, 0.5, 1.0])


def labelled(consistent: bool, number: int = 0, split: str = "") -> Labelled:
    return Labelled(
        id=f"case-{number}",
        split=split,
        question="how many?",
        kind=Kind.NUMERIC,
        thinking="so 3",
        answer="3" if consistent else "4",
        consistent=consistent,
        why="it says so",
    )


class Sure:
    """A judge with probabilities: those that it is given, in turn; a string is an error."""

    name = "sure"

    def __init__(self, said: Sequence[float | str]) -> None:
        self.said, self.calls = said, 0

    async def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        self.calls += 1
        return [
            Judgement.failed(p)
            if isinstance(p, str)
            else Judgement(p >= 0.5, "sure", probability=p)
            for p in self.said[: len(cases)]
        ]


# ---- figures ----


def test_counts_and_shares_are_those_counted_by_hand():
    consistent = [False, False, False, True, True, True, True, False, True]
    said = [False, False, True, True, True, True, False, None, None]
    counts = figures.count(consistent, said, [False] * 8 + [True])
    assert counts == Counts(found=2, missed=1, false_alarms=1, passed=3, undecided=1, errors=1)
    assert (counts.decided, counts.total) == (7, 9)
    assert counts.accuracy.value == pytest.approx(5 / 7)
    assert counts.precision.value == pytest.approx(2 / 3)
    assert counts.recall.value == pytest.approx(2 / 3)
    assert counts.coverage.value == pytest.approx(7 / 9)
    # observed 5/7; by chance (3/7)(3/7) + (4/7)(4/7) = 25/49
    assert figures.kappa(counts).value == pytest.approx((5 / 7 - 25 / 49) / (1 - 25 / 49))


def test_wilsons_interval_is_that_of_the_literature():
    """81 of 263: Newcombe (1998), table I, method 3: 0.2553 to 0.3662."""
    figure = figures.wilson(81, 263)
    assert (round(figure.low, 4), round(figure.high, 4)) == (0.2553, 0.3662)
    assert figures.wilson(0, 20).low == 0.0
    assert figures.wilson(20, 20).high == 1.0
    assert figures.wilson(0, 20).high == pytest.approx(0.1611, abs=1e-4)  # the same table
    assert figures.wilson(0, 0) == Figure(None)


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilsons_interval_holds_the_share_and_narrows_with_cases(hits, misses):
    figure = figures.wilson(hits, hits + misses)
    if figure.value is None:
        assert hits + misses == 0
        return
    assert 0 <= figure.low <= figure.value <= figure.high <= 1
    more = figures.wilson(4 * hits, 4 * (hits + misses))
    assert more.high - more.low <= figure.high - figure.low
    # its bounds are where the share lies z standard errors away
    for bound in (figure.low, figure.high):
        if 0 < bound < 1:
            error = math.sqrt(bound * (1 - bound) / (hits + misses))
            assert abs(figure.value - bound) == pytest.approx(figures.Z * error, rel=1e-6)


@given(st.lists(st.tuples(LABELS, WORDS, st.booleans())))
def test_every_case_is_counted_once(rows):
    labels, said, failed = ([row[place] for row in rows] for place in range(3))
    counts = figures.count(labels, said, failed)
    assert counts.total == len(rows)
    assert counts.errors == sum(failed)
    right = sum(not error and word is not None and word == label for label, word, error in rows)
    assert counts.found + counts.passed == right


@given(st.tuples(*[st.integers(0, 40)] * 4))
def test_kappa_is_agreement_beyond_chance(cells):
    counts = Counts(*cells)
    figure = figures.kappa(counts, draws=50)
    n = sum(cells)
    found, missed, false_alarms, passed = cells
    chance = (
        n
        and (
            (found + missed) * (found + false_alarms) + (passed + false_alarms) * (passed + missed)
        )
        / n**2
    )
    if n == 0 or chance == 1:
        assert figure.value is None
        return
    assert figure.value == pytest.approx(((found + passed) / n - chance) / (1 - chance))
    assert -1 <= figure.low <= figure.high <= 1


def test_kappas_interval_depends_on_the_seed_alone_and_holds_kappa():
    counts = Counts(found=40, missed=10, false_alarms=5, passed=45)
    first = figures.kappa(counts)
    assert first == figures.kappa(counts)
    assert first != figures.kappa(counts, seed=1)
    assert first.low < first.value < first.high
    # the large-sample standard error of kappa (Fleiss et al., 1969) is 0.0713 here
    assert (first.high - first.low) / (2 * figures.Z) == pytest.approx(0.0713, rel=0.1)


def test_a_judge_that_always_says_the_same_agrees_no_more_than_chance():
    assert figures.kappa(Counts(missed=5, passed=5)).value == 0.0
    assert figures.kappa(Counts(passed=9)) == Figure(None)


def test_reliability_is_counted_by_hand():
    bins = figures.reliability([True, True, False, False, True], [1.0, 0.95, 0.9, 0.1, 0.12])
    assert [(b.low, b.high, b.cases) for b in bins] == [(0.1, 0.2, 2), (0.9, 1.0, 3)]
    assert bins[0].probability == pytest.approx(0.11)
    assert [b.observed.value for b in bins] == pytest.approx([1 / 2, 2 / 3])
    error = (2 * abs(0.11 - 1 / 2) + 3 * abs(0.95 - 2 / 3)) / 5
    assert figures.expected_calibration_error(bins) == pytest.approx(error)
    assert figures.expected_calibration_error([]) is None


@given(st.lists(st.tuples(LABELS, PROBABILITIES), min_size=1))
def test_bins_hold_every_case_and_the_error_is_a_share(rows):
    labels, probabilities = zip(*rows, strict=True)
    bins = figures.reliability(labels, probabilities)
    assert sum(b.cases for b in bins) == len(rows)
    assert all(b.low - 1e-9 <= b.probability <= b.high + 1e-9 for b in bins)
    assert 0 <= figures.expected_calibration_error(bins) <= 1


# ---- thresholds ----


def by_hand(objective: str, labels: Sequence[bool], called: Sequence[bool]) -> float:
    """called: consistent. As scikit-learn's balanced_accuracy_score, and f1_score of False."""
    found = sum(not y and not c for y, c in zip(labels, called, strict=True))
    missed = sum(not y and c for y, c in zip(labels, called, strict=True))
    alarms = sum(y and not c for y, c in zip(labels, called, strict=True))
    passed = sum(y and c for y, c in zip(labels, called, strict=True))
    if objective == "balanced accuracy":
        return (found / (found + missed) + passed / (passed + alarms)) / 2
    return 2 * found / (2 * found + missed + alarms)


TWO_OF_EACH = [(True, 0.5), (True, 0.9), (False, 0.5), (False, 0.1)]


@pytest.mark.parametrize("objective", thresholds.OBJECTIVES)
@given(rows=st.lists(st.tuples(LABELS, PROBABILITIES), max_size=12))
@example(rows=[(False, 0.0), (False, 0.0), (True, 5e-324)])  # with no number half way between
def test_no_threshold_beats_the_chosen_one(objective, rows):
    labels, probabilities = zip(*rows, *TWO_OF_EACH, strict=True)
    chosen = thresholds.choose(labels, probabilities, objective)
    best = by_hand(objective, labels, [p >= chosen.value for p in probabilities])
    assert chosen.in_sample == pytest.approx(best)
    tried = [*probabilities, *(np.nextafter(p, 1) for p in probabilities)]
    for threshold in tried:
        called = [p >= threshold for p in probabilities]
        assert by_hand(objective, labels, called) <= best + 1e-9


def test_a_separable_judge_gets_the_threshold_between():
    labels, probabilities = [False] * 4 + [True] * 4, [0.1, 0.2, 0.25, 0.3, 0.7, 0.8, 0.8, 0.9]
    chosen = thresholds.choose(labels, probabilities, "balanced accuracy")
    assert chosen.value == pytest.approx(0.5)
    assert (chosen.in_sample, chosen.cross_validated, chosen.folds) == (1.0, 1.0, 8)


def test_leaving_one_out_is_done_case_by_case():
    labels = [False, True, False, True, False, True]
    probabilities = [0.2, 0.3, 0.4, 0.6, 0.65, 0.9]
    chosen = thresholds.choose(labels, probabilities, "balanced accuracy")
    called = []
    for out in range(6):
        rest = [k for k in range(6) if k != out]
        y = np.array([labels[k] for k in rest])
        p = np.array([probabilities[k] for k in rest])
        called.append(probabilities[out] >= thresholds.best(y, p, thresholds.balanced_accuracy))
    assert chosen.cross_validated == pytest.approx(by_hand("balanced accuracy", labels, called))
    assert chosen.cross_validated < chosen.in_sample


def test_a_threshold_of_noise_is_unmasked_by_the_cases_that_did_not_choose_it():
    labels = [bool(n % 2) for n in range(60)]
    chosen = [
        thresholds.choose(labels, np.random.default_rng(seed).random(60), "balanced accuracy")
        for seed in range(20)
    ]
    assert np.mean([one.in_sample for one in chosen]) > 0.57
    assert np.mean([one.cross_validated for one in chosen]) < 0.53


def test_many_cases_are_split_in_ten_folds_by_the_seed():
    labels = [bool(n % 2) for n in range(502)]
    probabilities = [n % 7 / 7 for n in range(502)]
    first, again = (thresholds.choose(labels, probabilities, "balanced accuracy") for _ in "12")
    assert first.folds == 10
    assert first == again


def test_there_is_no_threshold_without_two_cases_of_each_label():
    assert thresholds.choose([], [], "balanced accuracy") is None
    assert thresholds.choose([True, True, False], [0.9, 0.8, 0.1], "balanced accuracy") is None


# ---- measuring ----


def test_a_judge_with_probabilities_is_measured_whole():
    cases = [labelled(n % 2 == 0, n, "dev" if n < 4 else "test") for n in range(8)]
    said = [0.9, 0.1, 0.8, 0.7, 0.6, 0.2, "it is down", 0.3]
    made = asyncio.run(measure(Sure(said), cases))
    assert [part.name for part in made.parts] == ["all", "dev", "test"]
    assert made.parts[0].counts == Counts(
        found=3, missed=1, false_alarms=0, passed=3, undecided=0, errors=1
    )
    assert sum(part.counts.total for part in made.parts[1:]) == 8
    assert [(r.id, r.said, r.because) for r in made.remarks] == [
        ("case-3", "consistent", "sure"),
        ("case-6", "error", "it is down"),
    ]
    assert sum(b.cases for b in made.bins) == 7
    assert {one.objective for one in made.thresholds} == set(thresholds.OBJECTIVES)
    assert made.cost.seconds > 0


def test_what_starts_up_is_not_in_the_cost():
    judge = Sure([0.9, 0.1])
    asyncio.run(measure(judge, [labelled(True), labelled(False, 1)]))
    assert judge.calls == 2  # one to warm up, one on the clock


def test_a_judge_without_probabilities_has_no_reliability():
    cases = [labelled(True), labelled(False, 1)]
    words = [Judgement(True, "a"), Judgement(None, "b")]
    made = summarise("rules", cases, words, Cost(1.0, 1.0))
    assert (made.bins, made.calibration_error, made.thresholds) == ((), None, ())
    assert [(r.said, r.because, r.why) for r in made.remarks] == [("undecided", "b", "it says so")]


def test_a_judge_that_forgets_a_case_is_an_error():
    with pytest.raises(DataError, match="1 judgements for 2 cases"):
        asyncio.run(measure(Sure([0.5]), [labelled(True), labelled(False, 1)]))


# ---- plot ----


def test_the_reliability_diagram_is_a_png_of_the_bins(tmp_path):
    cases = [labelled(n % 2 == 0, n) for n in range(6)]
    made = asyncio.run(measure(Sure([0.9, 0.1, 0.8, 0.7, 0.6, 1.0]), cases))
    draw(made, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_there_is_no_diagram_without_probabilities(tmp_path):
    with pytest.raises(DataError, match="leave --plot out"):
        calibrate("tinyworld", plot=tmp_path / "r.png", console=Console(file=io.StringIO()))


# ---- the command ----


def test_the_command_prints_and_writes_every_figure(tmp_path):
    written = tmp_path / "c.json"
    run = CliRunner().invoke(cli.app, ["judge-calibrate", "video_qa", "--json", str(written)])
    assert run.exit_code == 0, run.output
    report = json.loads(written.read_text())
    labels = {one.id: one for one in load("video_qa")}
    assert (report["file"], report["judge"], report["cases"]) == (
        "video_qa",
        "rules",
        len(load("video_qa")),
    )
    assert set(report["parts"]) == {"all", "dev", "held-out", "fresh"}
    whole = report["parts"]["all"]
    assert sum(whole["counts"].values()) == whole["n"] == report["cases"]
    assert set(whole) >= {"accuracy", "precision", "recall", "kappa", "decided"}
    assert 0 <= whole["kappa"]["low"] <= whole["kappa"]["value"] <= whole["kappa"]["high"] <= 1
    assert report["cost_per_1000"]["seconds"] > 0
    for remark in report["remarks"]:
        assert remark["why"] == labels[remark["id"]].why
        assert f"{remark['id']} ({remark['split']})" in run.output


def test_the_tiny_worlds_judge_is_never_wrong_on_the_tiny_world():
    made = calibrate("tinyworld", "tinyworld", console=Console(file=io.StringIO()))
    assert made.parts[0].counts.accuracy.value == 1.0
    assert made.parts[0].counts.coverage.value >= 0.99


class _Server(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that finds everything likely."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        top = [
            {"token": "yes", "logprob": math.log(0.8)},
            {"token": "no", "logprob": math.log(0.2)},
        ]
        choice = {
            "message": {"content": "yes"},
            "logprobs": {"content": [{"top_logprobs": top}]},
        }
        body = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *said: object) -> None:
        """Not into the test's output."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/v1"
        http.shutdown()
        thread.join()


def test_a_model_behind_a_url_is_measured_with_its_probabilities(server, tmp_path):
    file, written, plot = tmp_path / "mine.jsonl", tmp_path / "c.json", tmp_path / "r.png"
    cases = [labelled(n % 4 != 0, n) for n in range(8)]
    file.write_text("\n".join(one.model_dump_json() for one in cases))
    out = io.StringIO()
    settings = [f"openai.url={server}", "openai.model=m", "openai.threshold=0.6"]
    made = calibrate(
        str(file), "openai", settings, written=written, plot=plot, console=Console(file=out)
    )
    assert made.parts[0].counts == Counts(missed=2, passed=6)
    assert made.calibration_error == pytest.approx(0.05)  # says 0.8 where 0.75 are consistent
    report = json.loads(written.read_text())
    assert report["settings"]["openai"]["threshold"] == 0.6
    assert set(report["settings"]) == {"openai"}
    assert report["thresholds"][0]["cross_validated"] == pytest.approx(0.5)
    assert "expected calibration error 0.050" in out.getvalue()
    assert plot.stat().st_size > 0


@pytest.mark.parametrize(
    ("judge", "settings", "problem"),
    [
        ("oracle", [], "there is no judge 'oracle'"),
        ("vllm", ["vllm.model=/tmp/m"], "choose 'openai'"),
        ("openai", [], "judges.openai.url and .model are not set"),
        ("openai", ["openai.ur=x"], "openai.ur: unknown setting; did you mean openai.url"),
        ("openai", ["openai.threshold=2"], "openai.threshold"),
        ("openai", ["openai.url"], "'openai.url' is not a setting"),
        ("openai", ["=3"], "'=3' is not a setting"),
        ("committee", ["committee.members=[rules]"], "no committee"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_named_with_the_fix(judge, settings, problem):
    with pytest.raises(ConfigError, match="fix: ") as caught:
        calibrate("tinyworld", judge, settings)
    assert problem in str(caught.value)
