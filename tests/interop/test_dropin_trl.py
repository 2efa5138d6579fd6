"""TRL's GRPOTrainer trains on our reward, and on nothing where there is none."""

from __future__ import annotations

import math
import re
from importlib.resources import files

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from veripo_ray.dropin.trl import VeripoReward
from veripo_ray.errors import ConfigError, ResourceError

trl = pytest.importorskip("trl")

THINK = "<think> two cats have four legs and four legs so {} </think> "
RIGHT = THINK.format(8) + "<answer> 8 </answer>"
WRONG = THINK.format(2) + "<answer> 2 </answer>"
WAVERING = THINK.format(2) + "<answer> 8 </answer>"
PAGE = files("veripo_ray.dropin").joinpath("README.md").read_text()
ROWS = {"kind": ["numeric"] * 4, "gold": ["8"] * 4}


def rewards(*completions: object, **settings: object) -> list[float | None]:
    columns = {name: values[: len(completions)] for name, values in ROWS.items()}
    reward = VeripoReward(**settings)
    return reward(prompts=["legs ?"] * len(completions), completions=list(completions), **columns)


def test_the_reward_is_the_papers_less_what_a_contradiction_costs():
    assert rewards(RIGHT, WRONG, WAVERING, "8") == [1.5, 0.5, 1.5, 0.0]
    assert rewards(RIGHT, WRONG, WAVERING, inconsistency_penalty=1) == [1.5, 0.5, 0.5]
    assert rewards(RIGHT, "8", accuracy=2, format=0) == [2.0, 0.0]


def test_completions_may_be_chat_messages():
    assert rewards([{"role": "assistant", "content": RIGHT}]) == [1.5]


def test_a_row_that_cannot_be_scored_is_none_and_spoils_no_other():
    reward = VeripoReward(kind="numeric")
    logged: dict[str, float] = {}
    found = reward(
        prompts=["legs ?"] * 4,
        completions=[RIGHT, RIGHT, RIGHT, None],
        gold=["8", "many", None, "8"],
        log_metric=logged.__setitem__,
        trainer_state=object(),
        completion_ids=[[1]] * 4,
    )
    assert found == [1.5, None, None, None]
    assert logged["veripo/unscored"] == 0.75
    assert logged["veripo/accuracy"] == logged["veripo/format"] == 1.0


def test_a_judge_that_fails_gives_no_reward_only_where_it_is_heard():
    silent = {"url": "http://127.0.0.1:9", "model": "m", "attempts": 1, "timeout_s": 1}
    judge = {"judge": "openai", "judges": {"openai": silent}}
    assert rewards(RIGHT, **judge, inconsistency_penalty=1) == [None]
    assert rewards(RIGHT, **judge) == [1.5]


def test_a_running_verifier_may_judge(serve_verifier):
    url = serve_verifier()
    assert rewards(RIGHT, WAVERING, url=url, inconsistency_penalty=1) == [1.5, 0.5]
    with pytest.raises(ResourceError, match=r"127\.0\.0\.1:9"):
        rewards(RIGHT, url="http://127.0.0.1:9", timeout_s=0.2)


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match="format: Input should be greater"):
        VeripoReward(format=-1)
    with pytest.raises(ConfigError, match=r"known settings: .*inconsistency_penalty"):
        VeripoReward(penalty=1)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory) -> tuple[str, PreTrainedTokenizerFast]:
    """A tiny model that says RIGHT or WRONG, each about half of the time; and its tokenizer."""
    words = sorted({*RIGHT.split(), *WRONG.split(), "[PAD]", "[EOS]", "[UNK]"})
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
        _teach(model, tokenizer)
    folder = tmp_path_factory.mktemp("speaker")
    model.save_pretrained(folder)
    return str(folder), tokenizer


def _teach(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Any prompt is unknown words to this tokenizer."""
    texts = [f"{'? ' * n}{answer} [EOS]" for n in range(2, 20, 3) for answer in (RIGHT, WRONG)]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[labels == tokenizer.unk_token_id] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for _ in range(60):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()


def _page_code(checkpoint: str, **more: object) -> str:
    """The page's own example of TRL, on the tiny model and on a CPU."""
    (code,) = re.findall(r"```python\n(from datasets.*?)```", PAGE, re.DOTALL)
    code = re.sub(r"MODEL = .*", f"MODEL = {checkpoint!r}", code)
    code = code.replace("model=MODEL,", "model=MODEL, processing_class=TOKENIZER,")
    settings = ", ".join(f"{name}={value!r}" for name, value in more.items())
    code = code.replace("max_completion_length=256,", f"max_completion_length=48, {settings},")
    return code.replace("trainer.train()\n", "")


def test_the_page_s_example_trains_and_masks_what_cannot_be_scored(speaker, tmp_path):
    checkpoint, tokenizer = speaker
    named = {"TOKENIZER": tokenizer}
    cpu = {"use_cpu": True, "bf16": False, "report_to": "none", "seed": 1, "save_strategy": "no"}
    code = _page_code(checkpoint, **cpu, learning_rate=1e-3, disable_tqdm=True)
    code = code.replace('output_dir="grpo"', f"output_dir={str(tmp_path)!r}")
    exec(code.replace('"gold": "B"', '"gold": "all of them"'), named)
    trainer = named["trainer"]
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    seen = _watched(trainer)
    trainer.train()
    assert any(
        not torch.equal(old, new)
        for old, new in zip(before, trainer.model.parameters(), strict=True)
    )
    assert len(seen) == 2
    for kinds, rewards, advantages in seen:
        unscored = torch.tensor([kind == "choice" for kind in kinds])
        assert unscored.sum() == 4
        assert all(math.isnan(reward) for reward in rewards[unscored])
        assert set(rewards[~unscored].tolist()) <= {0.0, 0.5, 1.0, 1.5}
        assert (advantages[unscored] == 0).all()
        assert (advantages[~unscored] != 0).any()
    logged = trainer.state.log_history
    assert all(entry["veripo/unscored"] == 0.5 for entry in logged[:2])
    assert all(entry["veripo/format"] == 1.0 for entry in logged[:2])


def _watched(trainer) -> list[tuple[list[str], torch.Tensor, torch.Tensor]]:
    """Of each batch that the trainer samples: kinds, rewards and advantages."""
    seen: list = []
    rewards: list[torch.Tensor] = []
    calculate, generate = trainer._calculate_rewards, trainer._generate_and_score_completions

    def calculated(*args):
        rewards.append(calculate(*args))
        return rewards[-1]

    def generated(inputs):
        outputs = generate(inputs)
        kinds = [row["kind"] for row in inputs]
        seen.append((kinds, rewards[-1][:, 0], outputs["advantages"]))
        return outputs

    trainer._calculate_rewards = calculated
    trainer._generate_and_score_completions = generated
    return seen
