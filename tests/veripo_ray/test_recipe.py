"""A configuration is checked whole; every mistake names the setting, its value and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from veripo_ray import recipe
from veripo_ray.config import DpoPhase, GrpoPhase, Lora
from veripo_ray.errors import ConfigError

BASE = """
model: tinyworld
data: {tinyworld: {train: 64}}
grpo: {lr: 5e-4, rollout_batch: 16, train_batch: 16}
dpo: {beta: 0.2}
schedule: [grpo, dpo, {phase: grpo, lr: 2e-4}]
"""


PAPER_RATES = [1e-6, 5e-7, 5e-7, 5e-7]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    return path


def test_every_shipped_recipe_is_valid() -> None:
    assert "quickstart" in recipe.available()
    for name in recipe.available():
        assert recipe.load(name).schedule


LARGE = [name for name in recipe.available() if name.startswith("qwen")]


@pytest.mark.parametrize("name", LARGE)
def test_recipes_for_real_models_have_the_papers_hyperparameters(name: str) -> None:
    """VerIPO (arXiv 2505.19000): see veripo_ray/config for where each is from."""
    run = recipe.load(name)
    assert run.output.name == name
    grpo, dpo, again, last = run.schedule
    times = 10 if run.learner.lora else 1  # adapters learn at ten times the rates [ours]
    assert [phase.lr for phase in run.schedule] == pytest.approx([times * lr for lr in PAPER_RATES])
    assert isinstance(grpo, GrpoPhase)
    assert isinstance(again, GrpoPhase)
    for phase in (grpo, again):
        assert (phase.rollout_batch, phase.train_batch, phase.kl_coef) == (64, 64, 0)
    for phase in (dpo, last):
        assert isinstance(phase, DpoPhase)
        assert (phase.beta, phase.batch_pairs) == (0.1, 32)
    assert (run.rollout.group_size, run.rollout.temperature) == (8, 1.0)
    assert (run.curriculum.drop_solved, run.learner.train_vision) == (0.8, False)


@pytest.mark.parametrize("name", LARGE)
def test_the_longest_video_a_page_of_text_and_an_answer_fit_the_context(name: str) -> None:
    run = recipe.load(name)
    factor = 32 if name.startswith("qwen3") else 28  # pixels a side of what becomes one token
    steps = run.video.max_frames // 2
    video = steps * (run.video.max_pixels // factor**2)
    if name.startswith("qwen3"):
        video += 10 * steps  # words that tell the time of each
    longest = max(run.rollout.max_tokens, run.evaluation.max_tokens)
    assert video + 800 + longest <= run.rollout.max_model_len


def test_phase_sections_lie_under_the_schedules_entries(file: Path) -> None:
    first, dpo, second = recipe.load(file).schedule
    assert isinstance(first, GrpoPhase)
    assert isinstance(second, GrpoPhase)
    assert isinstance(dpo, DpoPhase)
    assert (first.lr, second.lr, second.rollout_batch, dpo.beta) == (5e-4, 2e-4, 16, 0.2)


def test_overrides_reach_sections_phases_and_the_schedule(file: Path) -> None:
    run = recipe.load(file, ["grpo.epochs=2", "schedule.1.beta=0.3", "seed=7", "rollout.workers=2"])
    assert [p.epochs for p in run.schedule] == [2, 1, 2]
    assert run.schedule[1].beta == 0.3  # type: ignore[union-attr]
    assert (run.seed, run.rollout.workers) == (7, 2)
    assert len(recipe.load(file, ["schedule=[grpo]"]).schedule) == 1


def test_the_resolved_configuration_reads_back_equal(file: Path, tmp_path: Path) -> None:
    run = recipe.load(file)
    written = tmp_path / "config.yaml"
    written.write_text(recipe.dump(run))
    assert recipe.load(written) == run


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("grpo.lrr=1", "grpo.lrr: unknown setting; did you mean grpo.lr?"),
        ("rollout.wrkers=3", "rollout.wrkers: unknown setting; did you mean rollout.workers?"),
        ("rollout.workers=x", r"rollout.workers: .*integer.*\(got 'x'\)"),
        ("schedule.1.bta=3", "schedule.1.bta: unknown setting; did you mean schedule.1.beta?"),
        ("zebra=1", "zebra: unknown setting; known here: model, output"),
        (
            "grpo.train_batch=7",
            r"rollout_batch = 16 is not a multiple of train_batch = 7; make it 21",
        ),
        (
            "grpo.questions=20",
            r"questions = 20 is not a multiple of rollout_batch = 16; make it 32",
        ),
        ("schedule=[dpo]", "a dpo phase needs a grpo phase right before it"),
        ("learner.ranks=64", r"train_batch = 16 gives some of the 64 learner ranks nothing"),
        ("rollout.max_tokens=30000", "rollout.max_model_len = 21504 leaves no room"),
        ("data.train=x.jsonl", "both files and data.tinyworld are set"),
        ("data.tinyworld=null", "set data.train and data.heldout"),
        ("schedule.9.lr=1", "does not fit the recipe"),
        ("grpo=3", "grpo: expected settings, got 3"),
        ("nonsense", "'nonsense' is not an override"),
        ("grpo={lr:", "the value of 'grpo={lr:' cannot be read"),
        ("verifier.judge=vllm", "verifier.judges.vllm.model is not set"),
        ("evaluation.judge=openai", "verifier.judges.openai.url and .model are not set"),
        ("learner.lora.targets=[q]", r"learner.lora.targets.0: .*'q_proj'"),
        ("learner.lora.targets=[q_proj,q_proj]", "learner.lora.targets names one twice"),
        ("learner.lora.dropout=0.1", "dropout = 0.1 is of sft phases, and the schedule has none"),
        ("verifier.judge=committee", r"committee.members = \[\] is no committee; name two or more"),
    ],
)
def test_a_mistake_names_the_setting_and_the_fix(file: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")) as caught:
        recipe.load(file, [override])
    assert "Traceback" not in str(caught.value)


def test_adapters_and_a_tower_that_learns_exclude_each_other(file: Path) -> None:
    assert recipe.load(file, ["learner.lora={}"]).learner.lora == Lora()
    with pytest.raises(ConfigError, match="train_vision = true would train the whole tower"):
        recipe.load(file, ["learner.lora.rank=8", "learner.train_vision=true"])


def test_a_worker_that_drops_its_weights_cannot_be_sent_some_of_them(file: Path) -> None:
    sharing = ["placement.layout=colocated", "placement.sleep_level=2"]
    assert recipe.load(file, sharing).placement.sleep_level == 2
    with pytest.raises(ConfigError, match="sleep_level = 2 drops"):
        recipe.load(file, [*sharing, "learner.lora.rank=8"])


def test_all_mistakes_are_told_at_once(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe.load(file, ["rollout.workers=0", "learner.zero_stage=9"])
    assert "2 settings need mending" in str(caught.value)
    assert "rollout.workers" in str(caught.value)
    assert "learner.zero_stage" in str(caught.value)


def test_an_unknown_recipe_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'nope'") as caught:
        recipe.load("nope")
    assert "quickstart" in str(caught.value)
    with pytest.raises(ConfigError, match="no such recipe file"):
        recipe.load(tmp_path / "absent.yaml")


def test_a_file_that_is_not_yaml_of_settings_says_so(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [unclosed")
    with pytest.raises(ConfigError, match="broken"):
        recipe.load(broken)
    broken.write_text("- just\n- a list")
    with pytest.raises(ConfigError, match="expected settings, got list"):
        recipe.load(broken)


def test_a_judge_is_held_out_only_when_it_is_another_one(file: Path) -> None:
    assert recipe.load(file).heldout_judge is None
    assert recipe.load(file, ["evaluation.judge=rules"]).heldout_judge is None
    assert recipe.load(file, ["evaluation.judge=tinyworld"]).heldout_judge == "tinyworld"
