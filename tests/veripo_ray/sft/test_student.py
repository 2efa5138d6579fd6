"""The sft phase: what is imitated, how tokens weigh, that it learns and resumes exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from veripo_ray import config
from veripo_ray.config import Lesson, Run, SftPhase
from veripo_ray.errors import ConfigError, DataError
from veripo_ray.policy.grouped import Packed, response_logprobs
from veripo_ray.policy.media import Frames
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.questions import write_questions
from veripo_ray.records import Kind, Question
from veripo_ray.sft import Demonstration, Imitator, Student, load_demonstrations
from veripo_ray.sft.demonstrations import batches, demonstration, learning_rate, steps_of
from veripo_ray.sft.media import MediaSource
from veripo_ray.tinyworld.lessons import write_lesson

LEARNER = config.Learner(dtype="float32")


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lesson")
    return write_lesson(folder, "clean", demonstrations=24, clips=4, seed=0)


@pytest.fixture
def phase(lesson: Path) -> SftPhase:
    return SftPhase(demonstrations=lesson, batch=6, lr=2e-3, checkpoint_every=2, warmup_steps=1)


@pytest.fixture
def run(phase: SftPhase) -> Run:
    return Run(
        model="unused",
        schedule=(phase,),
        data=config.Data(tinyworld=config.TinyWorldData()),
        video=config.Video(fps=2.0, min_pixels=784),
        prompt=config.Prompt(template="tinyworld"),
        learner=LEARNER,
        seed=7,
    )


def losses_of(student: Student, folder: Path, stop: int | None = None) -> list[float]:
    """Train; return the losses. With `stop`, break off after that many steps."""
    losses: list[float] = []

    def keep(stats: dict[str, float], saved: Path | None) -> None:
        losses.append(stats["loss"])
        if len(losses) == stop:
            raise KeyboardInterrupt

    try:
        student.imitate(load_demonstrations(student.run.data, student.phase), folder, keep)
    except KeyboardInterrupt:
        assert stop
    return losses


def test_with_lora_it_drops_inputs_while_it_imitates_and_at_no_other_time(
    run: Run, phase: SftPhase, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    phase = phase.model_copy(update={"steps": 3})
    losses = []
    for rate in (0.0, 0.5):
        lora = config.Lora(rank=4, dropout=rate)
        learner = LEARNER.model_copy(update={"lora": lora})
        with Student(
            run.model_copy(update={"learner": learner}), phase, tiny_checkpoint
        ) as student:
            losses.append(losses_of(student, tmp_path / str(rate)))
            packed = [Packed(np.arange(20, 24, dtype=np.int32), (), (np.arange(24, 28),))]
            first, second = (student.learner.logprobs(packed)[0][0] for _ in range(2))
            np.testing.assert_array_equal(first, second)
    assert losses[0][0] == pytest.approx(losses[1][0])  # fresh adapters add nothing
    assert losses[0][2] != pytest.approx(losses[1][2], rel=1e-4)
    assert losses[0][2] < losses[0][0]


def test_asked_to_stop_it_saves_the_step_in_progress(
    run: Run, phase: SftPhase, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    made: list[Path | None] = []
    with Student(run, phase, tiny_checkpoint) as student:
        questions = load_demonstrations(run.data, phase)
        student.imitate(
            questions, tmp_path, lambda _, saved: made.append(saved), stop=lambda: len(made) == 2
        )
    assert made == [None, tmp_path / "step-000002", tmp_path / "step-000003"]
    assert (tmp_path / "step-000003" / "hf").is_dir()


def test_interrupted_and_resumed_it_gives_the_same_losses_and_weights(
    run: Run, phase: SftPhase, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with Student(run, phase, tiny_checkpoint) as student:
        whole = losses_of(student, tmp_path / "whole")
    with Student(run, phase, tiny_checkpoint) as student:
        first = losses_of(student, tmp_path / "part", stop=3)
    with Student(run, phase, tiny_checkpoint) as student:
        student.learner.load(tmp_path / "part" / "step-000002")
        rest = losses_of(student, tmp_path / "part")
    assert len(whole) == 4
    assert whole[:2] + rest == pytest.approx(whole, rel=1e-6)
    assert first[2] == pytest.approx(rest[0], rel=1e-6)
    a, b = (
        load_file(tmp_path / name / "step-000004" / "hf" / "model.safetensors")
        for name in ("whole", "part")
    )
    assert all(torch.allclose(a[name], b[name], atol=1e-7) for name in a)


def test_it_learns_and_leaves_the_tower_alone(
    run: Run, phase: SftPhase, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    phase = phase.model_copy(update={"steps": 12, "checkpoint_every": 100})
    with Student(run, phase, tiny_checkpoint) as student:
        losses = losses_of(student, tmp_path)
    assert losses[-1] < 0.75 * losses[0]
    before = load_file(tiny_checkpoint / "model.safetensors")
    after = load_file(tmp_path / "step-000012" / "hf" / "model.safetensors")
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("visual."))


def test_the_tower_learns_where_the_recipe_says_so(
    run: Run, phase: SftPhase, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    phase = phase.model_copy(update={"steps": 1})
    run = run.model_copy(update={"learner": config.Learner(dtype="float32", train_vision=True)})
    with Student(run, phase, tiny_checkpoint) as student:
        losses_of(student, tmp_path)
    before = load_file(tiny_checkpoint / "model.safetensors")
    after = load_file(tmp_path / "step-000001" / "hf" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "visual.patch_embed.proj.weight" in changed
    assert "lm_head.weight" in changed


def test_a_learning_tower_sees_what_the_frozen_one_sees(
    run: Run, phase: SftPhase, tiny_checkpoint: Path, lesson: Path
) -> None:
    question = load_demonstrations(run.data, phase)[0]
    policy = QwenVL.load(tiny_checkpoint, dtype=torch.float32)
    logprobs = []
    for frames in (False, True):
        source = MediaSource(tiny_checkpoint, run.video, frames=frames)
        media = source.of(question)
        assert isinstance(media[0], Frames) == frames
        example = demonstration(policy, question, media, "tinyworld", phase)
        logprobs.append(response_logprobs(policy, [example.packed(media)])[0][0])
        source.close()
    torch.testing.assert_close(*logprobs, rtol=0, atol=1e-5)
    assert policy.seen == 1


def test_the_loss_is_the_weighted_mean_of_token_losses(tiny_checkpoint: Path) -> None:
    rows = [(np.arange(10, 14), [1.0, 1.0, 4.0, 4.0]), (np.arange(20, 22), [1.0, 2.0])]
    prompt = np.array([1, 48, 13, 2], np.int32)
    examples = [
        Demonstration(str(i), prompt, ids.astype(np.int32), np.array(weights, np.float32))
        for i, (ids, weights) in enumerate(rows)
    ]
    policy = QwenVL.load(tiny_checkpoint, dtype=torch.float32, tower=False)
    scores = response_logprobs(policy, [Packed(prompt, (), (e.response,)) for e in examples])
    wanted = -sum(
        float((row[0].detach() * torch.tensor(e.weights)).sum())
        for row, e in zip(scores, examples, strict=True)
    )
    learner = Imitator(tiny_checkpoint, LEARNER)
    stats = learner.sft_step(examples, {"0": (), "1": ()}, lr=1e-4)
    assert stats["loss"] == pytest.approx(wanted / 13.0, rel=1e-5)
    assert stats["tokens"] == 6


def test_tokens_from_the_last_conclusion_on_weigh_more(
    tiny_checkpoint: Path, phase: SftPhase
) -> None:
    policy = QwenVL.load(tiny_checkpoint, dtype=torch.float32, tower=False)
    text = "<think> so 2 wait f1 red 1 so 1 </think> <answer> 1 </answer>"
    question = Question(id="q", text="count red ?", kind=Kind.NUMERIC, gold="1", demonstration=text)
    for conclusion, late in (("so ", 7), ("<answer>", 4), ("nowhere", 0)):  # with the stop token
        chosen = phase.model_copy(update={"conclusion": conclusion, "answer_weight": 5.0})
        made = demonstration(policy, question, (), "tinyworld", chosen)
        words = len(text.split())
        assert made.weights.tolist() == [1.0] * (words + 1 - late) + [5.0] * late
        assert policy.tokenizer.decode(made.response) == f"{text} <|im_end|>"


def test_every_epoch_has_an_order_of_its_own_and_leaves_nothing_out(phase: SftPhase) -> None:
    questions = [
        Question(id=str(i), text="t", kind=Kind.NUMERIC, gold="1", demonstration="d")
        for i in range(10)
    ]
    chosen = phase.model_copy(update={"batch": 4, "epochs": 2})
    assert steps_of(chosen, 10) == 6
    plan = batches(questions, chosen, seed=0)
    epochs = [[q.id for _ in range(3) for q in next(plan)] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert all(sorted(epoch) == [str(i) for i in range(10)] for epoch in epochs)
    assert steps_of(phase.model_copy(update={"steps": 3}), 10) == 3


def test_the_rate_warms_up_and_decays(phase: SftPhase) -> None:
    chosen = phase.model_copy(update={"lr": 1.0, "warmup_steps": 4, "final_lr": 0.5})
    rates = [learning_rate(chosen, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.25)
    assert max(rates) == rates[3]
    assert rates[-1] == pytest.approx(0.505)
    assert all(math.isfinite(rate) for rate in rates)


def question(id: str, **fields: object) -> Question:
    return Question.model_validate(
        {"id": id, "text": "count red ?", "kind": "numeric", "gold": "1", **fields}
    )


def test_a_question_without_demonstration_is_named(tmp_path: Path, phase: SftPhase) -> None:
    write_questions(tmp_path / "a.jsonl", [question("x", demonstration="so 1"), question("lonely")])
    chosen = phase.model_copy(update={"demonstrations": tmp_path / "a.jsonl"})
    with pytest.raises(DataError, match="lonely"):
        load_demonstrations(config.Data(), chosen)


def test_no_file_at_all_is_a_mistake_in_the_recipe(phase: SftPhase) -> None:
    with pytest.raises(ConfigError, match="demonstrations"):
        load_demonstrations(config.Data(), phase.model_copy(update={"demonstrations": None}))


def test_too_many_bad_rows_stop_the_phase_and_few_do_not(tmp_path: Path, phase: SftPhase) -> None:
    rows = [
        question(str(i), demonstration="so 1", video="gone.mp4" if i < 2 else None)
        for i in range(10)
    ]
    write_questions(tmp_path / "a.jsonl", rows)
    chosen = phase.model_copy(update={"demonstrations": tmp_path / "a.jsonl"})
    with pytest.raises(DataError, match=r"2 of 10 .*gone\.mp4"):
        load_demonstrations(config.Data(), chosen)
    assert len(load_demonstrations(config.Data(max_bad_share=0.2), chosen)) == 8


def test_media_beyond_the_budget_are_made_again(
    run: Run, phase: SftPhase, tiny_checkpoint: Path
) -> None:
    questions = load_demonstrations(run.data, phase)
    videos = {q.video: q for q in questions}
    with_room, without = (
        MediaSource(tiny_checkpoint, run.video, budget_bytes=budget) for budget in (1 << 20, 1)
    )
    for source in (with_room, without):
        first = [source.of(q)[0] for q in videos.values()]
        again = [source.of(q)[0] for q in videos.values()]
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a.values, b.values)
        assert all(a is b for a, b in zip(first, again, strict=True)) == (source is with_room)
        source.close()


def test_text_and_images_need_no_video(
    run: Run, tiny_checkpoint: Path, tmp_path: Path, make_image: Callable[[Path], Path]
) -> None:
    source = MediaSource(tiny_checkpoint, run.video)
    assert source.of(question("t")) == ()
    image = make_image(tmp_path / "a.png")
    [features] = source.of(question("i", images=(str(image),)))
    assert features.modality == "image"
    assert features.rows == 2
    source.close()


@pytest.fixture
def make_image() -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        from PIL import Image

        Image.fromarray(np.full((28, 56, 3), 90, np.uint8)).save(path)
        return path

    return make


def test_a_lesson_is_part_of_a_recipe() -> None:
    phase = SftPhase.model_validate({"lesson": {"name": "letters", "clips": 1}})
    assert phase.lesson == Lesson(name="letters", clips=1)
