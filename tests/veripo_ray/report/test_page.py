"""The report: self-contained, escaped, true to the run's folder, and there even when little is."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from veripo_ray.errors import DataError
from veripo_ray.journal import RunJournals
from veripo_ray.report import write_report
from veripo_ray.runlog import Cost, SecondsPerSample, Stage, Summary, write_summary

VOID = {"meta", "img", "br", "link", "hr", "input"}
LOADS = {"script", "link", "iframe", "object", "embed", "video", "audio", "base", "form", "image"}


class Page(HTMLParser):
    """Reads the page as a browser would see it: elements, ids, addresses and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.broken: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "srcset", "data", "action"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.broken.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", self.text)


def read_page(folder: Path) -> Page:
    return Page(write_report(folder).read_text())


@pytest.fixture(scope="module")
def page(finished_run: Path) -> Page:
    return read_page(finished_run)


def test_every_element_is_closed_and_every_id_unique(page: Page) -> None:
    assert page.broken == []
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))


def test_nothing_is_loaded_from_elsewhere(page: Page, finished_run: Path) -> None:
    assert not LOADS & set(page.tags)
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    html = (finished_run / "report.html").read_text()
    assert re.findall(r"url\((?!#)", html) == []
    assert "@import" not in html


def test_references_inside_the_page_lead_somewhere(page: Page, finished_run: Path) -> None:
    html = (finished_run / "report.html").read_text()
    wanted = set(re.findall(r"url\(#([^)]+)\)", html)) | {
        a[1:] for a in page.addresses if a[0] == "#"
    }
    assert wanted
    assert wanted <= set(page.ids)


def test_model_output_is_shown_and_never_obeyed(page: Page) -> None:
    assert page.handlers == []
    assert '<script>fetch("https://evil.example/")</script>' in page.text
    assert "<think> f1 red f4 blue so red </think>" in page.text
    assert "clips/<b>0077</b>.mp4" in page.text
    assert "\x00" not in page.text


def test_the_report_is_small_and_the_same_each_time(finished_run: Path) -> None:
    first = write_report(finished_run).read_bytes()
    assert len(first) < 3_000_000
    assert write_report(finished_run).read_bytes() == first


def test_the_headline_states_changes_with_their_errors(page: Page) -> None:
    assert "accuracy rose by 34.3 ± 3.3 points" in page.words
    assert "inconsistency fell by 33.1 ± 2.8 points" in page.words
    assert "The largest drop in inconsistency came with dpo 1" in page.words


def test_each_measure_of_the_loop_has_a_curve_and_a_column(page: Page) -> None:
    for title in ("Tokens of thinking", "Repetitive responses", "Well-formed responses"):
        assert title in page.words
    assert "31.2 ± 2.3%" in page.words
    assert page.tags.count("svg") == 6 + 6 + 3  # stages, grpo metrics, dpo metrics


def test_every_family_shows_a_pair_with_the_verdicts_reasons(page: Page) -> None:
    for family in ("Accuracy", "Penalty", "Consistency", "Reflection", "Longer"):
        assert re.search(rf"{family} \d+ pairs", page.words)
    assert "548 preference pairs" in page.words
    assert "the thinking concludes “red C”, the answer is “A”" in page.words
    assert "mark" in page.tags


def test_undecided_checks_and_failed_groups_are_counted_apart(page: Page) -> None:
    assert "rollouts of 61 groups; 1 more could not be judged" in page.words
    assert "the judge did not answer within 60 s (1)" in page.words


def test_the_film_and_the_chains_of_every_stage_are_shown(page: Page) -> None:
    assert page.tags.count("img") == 8
    assert "consistency undecided" in page.words
    for stage in ("initial", "grpo 1", "dpo 1", "grpo 2"):
        assert f"{stage} " in page.words


def test_cost_names_the_ratio_and_the_parts(page: Page) -> None:
    assert "a GRPO sample cost 2.5 times as much as a DPO sample" in page.words
    assert "46.1 ms a sample" in page.words
    assert "reference 3s (24%)" in page.words


def test_it_says_that_the_judge_that_curates_also_evaluates(page: Page) -> None:
    assert "The same judge, “rules”, chose the preference pairs and measured" in page.words


def test_facts_of_the_run_are_there(page: Page) -> None:
    assert "Each of the 912 distinct clips was decoded once and encoded once." in page.words
    assert "At most 1.4e-06 nats" in page.words
    assert "2 items were unusable and left out" in page.words
    assert "vllm 0.12.0" in page.words
    assert "beta: 0.1" in page.text


def test_a_dearer_dpo_sample_is_said_as_it_is(run_folder: Path, run_summary: Summary) -> None:
    dear = run_summary.model_copy(
        update={"seconds_per_sample": SecondsPerSample(grpo=0.01, dpo=0.02), "cost": {}}
    )
    write_summary(run_folder, dear)
    assert "a DPO sample cost 2.0 times as much as a GRPO sample" in read_page(run_folder).words


def test_a_run_that_only_began_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: tinyworld\nverifier:\n  judge: rules\n")
    page = read_page(tmp_path)
    assert page.broken == page.open == []
    for sentence in (
        "This run has not finished",
        "No stage was evaluated before the run stopped.",
        "The run kept no responses to show.",
        "No preference pairs were made",
        "No phase was finished, so there is no cost to report.",
        "No optimiser step was taken",
        "No video was counted.",
        "The same judge, “rules”",
    ):
        assert sentence in page.words


def test_a_run_that_only_began_names_the_judge_that_will_evaluate(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("verifier: {judge: rules}\nevaluation: {judge: openai}\n")
    assert "“openai”, which took no part in training" in read_page(tmp_path).words


def test_one_stage_alone_claims_no_change(run_folder: Path, run_summary: Summary) -> None:
    write_summary(run_folder, run_summary.model_copy(update={"stages": run_summary.stages[:1]}))
    assert "Only the stage initial was evaluated" in read_page(run_folder).words


def test_a_summary_with_only_the_required_keys_is_enough(tmp_path: Path) -> None:
    bare = [
        Stage(
            iteration=i, phase=p, accuracy=0.5, inconsistency=None, mean_think_tokens=None,
            repetition=0.0, format=1.0, logprob_gap_max=None, errors=3,
        )
        for i, p in ((0, "initial"), (1, "grpo"))
    ]  # fmt: skip
    cost = {"grpo": Cost(samples=0, parts={})}
    write_summary(tmp_path, Summary(stages=tuple(bare), cost=cost))
    page = read_page(tmp_path)
    assert page.broken == page.open == []
    assert "accuracy went from 50.0% to 50.0%, errors unknown" in page.words
    assert "could not judge them: 3 responses at initial, 3 responses at grpo 1." in page.words
    assert "The run's config.yaml is missing." in page.words
    assert "did not record who judged" in page.words


def test_a_long_run_stays_under_three_megabytes(
    run_folder: Path, run_summary: Summary, hostile: str
) -> None:
    from veripo_ray.report import SampleResponse, add_stage_samples
    from veripo_ray.runlog import MetricsLog

    stages = tuple(
        stage.model_copy(update={"iteration": 4 * n + stage.iteration})
        for n in range(10)
        for stage in run_summary.stages
    )
    write_summary(run_folder, run_summary.model_copy(update={"stages": stages}))
    endless = SampleResponse(text=f"wait {hostile} " * 2000, correct=False, consistent=None)
    for stage in stages:
        add_stage_samples(run_folder, stage.label, {"last-7": endless, "hostile": endless})
    with MetricsLog(run_folder, tensorboard=False) as log:
        for step in range(4000):
            log.append("grpo", 3, step, {f"metric_{n}": step**0.5 + n for n in range(14)})
    page = read_page(run_folder)
    assert (run_folder / "report.html").stat().st_size < 3_000_000
    assert "more characters are in the journal" in page.words
    assert "Also in metrics.jsonl and TensorBoard:" in page.words


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not the folder of a run"):
        write_report(tmp_path)


def test_a_journal_cut_short_by_a_crash_still_gives_a_report(run_folder: Path) -> None:
    pairs = RunJournals(run_folder).pairs
    with pairs.path.open("r+b") as file:
        file.truncate(pairs.size() - 7)
    assert "348 preference pairs" in read_page(run_folder).words
