"""With LoRA a step changes the adapters alone, as plain torch would, and continues exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from veripo_ray import config
from veripo_ray.errors import CheckpointError
from veripo_ray.learner.engine import ADAM_BETAS
from veripo_ray.learner.examples import ToScore
from veripo_ray.learner.objectives import DpoObjective, GrpoObjective
from veripo_ray.policy.grouped import response_logprobs
from veripo_ray.policy.lora import Weight, is_adapter, plain_name
from veripo_ray.policy.qwen_vl import QwenVL
from veripo_ray.reference import ReferencePolicy

LORA = config.Lora(rank=4, alpha=8)
GRPO, DPO = config.Grpo(lr=1e-3), config.Dpo(lr=1e-3)


def train(learner, batch) -> list[dict[str, float]]:
    """Two steps of GRPO and one of DPO."""
    metrics = [learner.grpo_step(batch.groups, batch.features, GRPO) for _ in range(2)]
    return [*metrics, learner.dpo_step(batch.pairs, batch.features, DPO)]


@pytest.fixture(scope="module")
def expected(tiny_checkpoint, batch):
    """The same steps without DeepSpeed: adapters before and after, and gradient norms."""
    torch.manual_seed(0)  # a learner's own seed, from which it draws its adapters
    policy = QwenVL.load(tiny_checkpoint, dtype=torch.float32, tower=False)
    policy.add_adapters(LORA)
    low = policy.trainable()
    start = {name: weight.detach().numpy().copy() for name, weight in low.items()}
    optimizer = torch.optim.AdamW(low.values(), lr=1e-3, betas=ADAM_BETAS, weight_decay=0.0)
    norms = []
    for kind in ("grpo", "grpo", "dpo"):
        rows = batch.groups if kind == "grpo" else batch.pairs
        objective = GrpoObjective(rows, GRPO, None) if kind == "grpo" else DpoObjective(rows, DPO)
        packed = [row.packed(batch.features[row.id]) for row in rows]
        optimizer.zero_grad()
        loss, _ = objective(range(len(rows)), response_logprobs(policy, packed))
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(low.values(), 1.0)))
        optimizer.step()
    return start, {name: weight.detach().numpy() for name, weight in low.items()}, norms


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 0, "gradient_checkpointing": True},
        {"zero_stage": 2, "micro_batch_tokens": 100},
        {"zero_stage": 3, "gradient_checkpointing": True, "micro_batch_tokens": 100},
    ],
)
def test_steps_are_those_of_plain_torch_and_all_else_rests_to_the_bit(
    settings, tiny_checkpoint, batch, expected, learner
):
    start, end, norms = expected
    trained = learner(lora=LORA, **settings)
    metrics = train(trained, batch)
    assert [m["grad_norm"] for m in metrics] == pytest.approx(norms, rel=1e-4)
    ours = list(trained.adapters().values())
    for (name, weight), found in zip(end.items(), ours, strict=True):
        np.testing.assert_allclose(found, weight, atol=5e-5, rtol=0, err_msg=name)
        assert not np.array_equal(found, start[name]), name
    base = QwenVL.load(tiny_checkpoint, dtype=torch.float32, tower=False).model
    named = trained.policy.model.named_parameters()
    rest = {plain_name(n): Weight((p,)) for n, p in named if not is_adapter(n)}
    for name, weight in trained.engine.each_whole(rest):
        assert torch.equal(weight.value(), base.get_parameter(name)), name


@pytest.mark.parametrize(
    ("stage", "dtype"), [(0, "float32"), (3, "float32"), (0, "bfloat16"), (3, "bfloat16")]
)
def test_training_continues_to_the_bit(stage, dtype, learner, batch, tmp_path):
    settings = {"zero_stage": stage, "dtype": dtype, "lora": LORA}
    original = learner(**settings)
    train(original, batch)
    original.publish(7)
    original.save(tmp_path / "step-3")
    metrics = train(original, batch)

    resumed = learner(**settings)
    resumed.load(tmp_path / "step-3")
    assert resumed.version == 7
    assert train(resumed, batch) == metrics
    ours, theirs = resumed.adapters(), original.adapters()
    for name, weight in ours.items():
        np.testing.assert_array_equal(weight, theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def saved(learner, batch, tmp_path_factory):
    """A learner whose frozen weights are nowhere whole, and its checkpoint."""
    trained = learner(lora=LORA, zero_stage=3)
    train(trained, batch)
    folder = tmp_path_factory.mktemp("checkpoints") / "step-3"
    trained.save(folder)
    return trained, folder


def test_the_checkpoint_is_a_whole_model_and_beside_it_the_adapter(saved, tiny_checkpoint):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    trained, folder = saved
    merged, report = AutoModelForImageTextToText.from_pretrained(
        folder / "hf", dtype="auto", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    base = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, dtype="auto")
    theirs = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    sent = {trained.policy.saved_name(name) for name, _ in base.named_parameters()}
    assert trained.weights().keys() < sent
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(merged.get_parameter(name), weight, atol=1e-6, rtol=0)


def test_the_reference_becomes_the_merged_policy(saved, tiny_checkpoint, batch):
    trained, _ = saved
    reference = ReferencePolicy(tiny_checkpoint, trained.cfg)
    packed = [group.packed(batch.features[group.id]) for group in batch.groups]
    before = reference.logprobs(packed)
    reference.load_weights(3, trained.weights())
    found, expected = reference.logprobs(packed), trained.logprobs(packed)
    assert max(np.abs(a[1] - b[1]).max() for a, b in zip(before, expected, strict=True)) > 1e-3
    for ours, theirs in zip(found, expected, strict=True):
        for row, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(row, other, atol=1e-5)


def to_score(batch) -> list[ToScore]:
    return [ToScore(p.id, p.prompt_ids, (p.chosen, p.rejected)) for p in batch.pairs]


def assert_equal(ours, theirs, *, atol: float = 0.0) -> None:
    assert ours.keys() == theirs.keys()
    for id_, rows in ours.items():
        for row, other in zip(rows, theirs[id_], strict=True):
            np.testing.assert_allclose(row, other, atol=atol, rtol=0, err_msg=id_)


@pytest.mark.parametrize(("stage", "rank"), [(0, 4), (3, 4), (3, 1)])
def test_the_learner_is_a_reference_that_rests_while_it_learns(
    stage, rank, learner, batch, tiny_checkpoint, tmp_path
):
    """Under ZeRO-3 adapters of rank 1 are too small to be cut, and stay whole on every rank."""
    lora = config.Lora(rank=rank, alpha=8)
    trained, rows = learner(lora=lora, zero_stage=stage), to_score(batch)
    packed = [row.packed(batch.features[row.id]) for row in rows]
    plain = ReferencePolicy(tiny_checkpoint, config.Learner(dtype="float32")).logprobs(packed)
    base = {row.id: scores for row, scores in zip(rows, plain, strict=True)}
    train(trained, batch)
    assert_equal(trained.score_by_reference(rows, batch.features), base, atol=1e-5)
    entered = trained.score(rows, batch.features)
    trained.keep_reference()
    trained.save(tmp_path / "entered")
    resumed = learner(lora=lora, zero_stage=stage)
    resumed.load_reference(tmp_path / "entered")
    for each in (trained, resumed):
        train(each, batch)
        assert_equal(each.score_by_reference(rows, batch.features), entered)


def test_scoring_by_the_reference_leaves_no_trace_in_training(learner, batch):
    one, other = (learner(lora=LORA, zero_stage=3) for _ in range(2))
    for each in (one, other):
        for _ in range(2):
            train(each, batch)
            if each is other:
                each.score_by_reference(to_score(batch), batch.features)
    ours, theirs = one.adapters(), other.adapters()
    for name, weight in ours.items():
        np.testing.assert_array_equal(weight, theirs[name], err_msg=name)


@pytest.mark.parametrize("lora", [None, LORA.model_copy(update={"rank": 8})])
def test_a_checkpoint_of_another_lora_setting_is_refused_by_name(lora, saved, learner):
    _, folder = saved
    with pytest.raises(CheckpointError, match=r"learner\.lora = .*'rank': 4.*, this run has"):
        learner(zero_stage=3, lora=lora).load(folder)
