"""One GRPO update of a group: ours against the same prompt repeated before every response.

    python benchmarks/learner.py --json out.json
    python benchmarks/learner.py --device cuda --trunk 7b --shapes 8192,512,8 16384,512,8

An update is forward, loss, backward and optimiser step; the sides hold the same weights and tokens:

- ours: the prompt once, the responses packed behind it;
- repeated: our own model and loss, fed G sequences;
- trl: TRL's `GRPOTrainer._compute_loss` and its fused head, on transformers' model;
- openrlhf: OpenRLHF's `Actor` and `PolicyLoss`, on transformers' model.

The limit is the ratio of token counts, G(P + R) / (P + G R): what a perfect implementation gains as
far as cost is proportional to tokens. On a CPU all run float32 and take the whole group at once; on
a GPU bfloat16 with gradient checkpointing, in micro-batches of at most --tokens tokens. Peak memory
is that of one update in a fresh process, above the loaded model and its optimiser's state.

Five paired rounds of ours and repeated where P is 4096, and of all four sides at the shape P=1024,
R=64, G=8; two of the rest. --repeats N takes N of everything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import torch
from _sides import Grouped, Setting, Shape, Side, openrlhf_actor, trl_model
from _updates import arguments, main
from torch import Tensor

from veripo_ray.config import Grpo
from veripo_ray.objectives.grpo import Totals, policy_loss

SHAPES = [Shape(p, r, g) for p in (256, 1024, 4096) for r in (64, 256) for g in (4, 8)]
CUDA_SHAPES = [Shape(1024, 256, 8), Shape(4096, 256, 8), Shape(8192, 512, 8), Shape(16384, 512, 8)]
NAMED = Shape(1024, 64, 8)
CFG = Grpo()  # GRPO's own: token ratios, mean of the sequences' means


class Ours(Grouped):
    """`policy_loss` on the scores of each micro-batch."""

    def losses(self) -> Iterator[Tensor]:
        advantages, old = _recorded(self.setting)
        shape, start = self.setting.shape, 0
        totals = Totals(shape.G * shape.R, shape.G, shape.R)
        for scores in self.scores():
            cut = slice(start, start + len(scores))
            mask = torch.ones_like(scores, dtype=torch.bool)
            yield policy_loss(scores, old[cut], advantages[cut], mask, CFG, totals)[0]
            start = cut.stop


class Trl(Side):
    """`GRPOTrainer._compute_loss` with a stand-in for the trainer: the settings that it reads."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, trl_model(setting, ("log_probs", "entropy")))
        from trl.trainer.grpo_trainer import GRPOTrainer

        self.trainer = _trl_trainer(self.model, setting, GRPOTrainer)
        self.compute_loss = GRPOTrainer._compute_loss

    def losses(self) -> Iterator[Tensor]:
        advantages, old = _recorded(self.setting)
        rows, shape = self.setting.sequences(), self.setting.shape
        for cut in self.setting.cuts():
            ids = rows[cut]
            inputs = {
                "prompt_ids": ids[:, : shape.P],
                "prompt_mask": torch.ones_like(ids[:, : shape.P]),
                "completion_ids": ids[:, shape.P :],
                "completion_mask": torch.ones_like(ids[:, shape.P :]),
                "advantages": advantages[cut],
                "old_per_token_logps": old[cut],
            }
            yield self.compute_loss(self.trainer, self.model, inputs) * len(ids) / shape.G

    @torch.no_grad()
    def logprobs(self) -> Tensor:
        rows = self.setting.sequences()
        return torch.cat(
            [
                self.trainer._get_per_token_logps_and_entropies(
                    self.model, rows[cut], torch.ones_like(rows[cut]), self.setting.shape.R
                )[0]
                for cut in self.setting.cuts()
            ]
        )


def _trl_trainer(model, setting: Setting, trainer: type) -> SimpleNamespace:
    from accelerate import Accelerator

    stand_in = SimpleNamespace(
        accelerator=Accelerator(cpu=setting.device == "cpu"),
        model=model, loss_type="grpo", importance_sampling_level=CFG.ratio, beta=CFG.kl_coef,
        epsilon_low=CFG.clip_low, epsilon_high=CFG.clip_high, max_completion_length=setting.shape.R,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        aux_loss_enabled=False, _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1, _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    stand_in._get_per_token_logps_and_entropies = lambda *args, **more: (
        trainer._get_per_token_logps_and_entropies(stand_in, *args, **more)
    )
    return stand_in


class OpenRlhf(Side):
    """`Actor.forward` and `PolicyLoss` as its policy trainer's training step calls them."""

    def __init__(self, setting: Setting) -> None:
        self.actor = openrlhf_actor(setting)
        super().__init__(setting, self.actor.model)
        from openrlhf.models.loss import PolicyLoss

        self.loss = PolicyLoss(CFG.clip_low, CFG.clip_high, token_level_loss=False)

    def score(self, ids: Tensor) -> Tensor:
        mask = torch.ones_like(ids[:, self.setting.shape.P :])
        return self.actor(ids, mask, attention_mask=torch.ones_like(ids), return_output=True)[0]

    def losses(self) -> Iterator[Tensor]:
        advantages, old = _recorded(self.setting)
        rows, shape = self.setting.sequences(), self.setting.shape
        for cut in self.setting.cuts():
            scores = self.score(rows[cut])
            gains = advantages[cut, None].expand_as(scores)
            mask = torch.ones_like(scores)
            yield self.loss(scores, old[cut], gains, mask)[0] * len(scores) / shape.G

    @torch.no_grad()
    def logprobs(self) -> Tensor:
        rows = self.setting.sequences()
        return torch.cat([self.score(rows[cut]) for cut in self.setting.cuts()])


def _recorded(setting: Setting) -> tuple[Tensor, Tensor]:
    """Advantages [G], and log-probabilities [G, R] as a rollout worker may have recorded them."""
    shape, rng = setting.shape, np.random.default_rng(1)
    advantages = rng.standard_normal(shape.G).astype(np.float32)
    old = -8 + 0.1 * rng.standard_normal((shape.G, shape.R)).astype(np.float32)
    return tuple(torch.from_numpy(array).to(setting.device) for array in (advantages, old))


SIDES = {
    "ours": Ours,
    "repeated": lambda setting: Ours(setting, repeated=True),
    "trl": Trl,
    "openrlhf": OpenRlhf,
}


def rounds(side: str, shape: Shape) -> int:
    ours = side in ("ours", "repeated")
    return 5 if shape == NAMED or (ours and shape.P >= 4096) else 2


if __name__ == "__main__":
    about = arguments(__doc__.splitlines()[0], SHAPES, CUDA_SHAPES)
    main("learner", about, SIDES, rounds, __file__)
