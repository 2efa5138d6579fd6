"""One DPO update of a pair: ours against its prompt repeated before each of the two responses.

    python benchmarks/dpo.py --json out.json
    python benchmarks/dpo.py --device cuda --trunk 7b

As benchmarks/learner.py, with the same trunks, memory and limit, here 2(P + R) / (P + 2R). The
sides: ours, a pair as a group of two; repeated, our own model and loss fed two sequences; trl,
`DPOTrainer._compute_loss` and its fused head; openrlhf, `DPOTrainer.concatenated_forward` with
`Actor` and `DPOLoss`. Reference log-probabilities are given: precomputed for all sides alike.

Five paired rounds of every shape; three where P is 4096.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from types import MethodType, SimpleNamespace

import torch
from _sides import Grouped, Setting, Shape, Side, openrlhf_actor, trl_model
from _updates import arguments, main
from torch import Tensor

from veripo_ray.config import Dpo
from veripo_ray.objectives.dpo import preference_loss

SHAPES = [Shape(p, r, 2) for p in (256, 1024, 4096) for r in (64, 256)]
CUDA_SHAPES = [Shape(1024, 256, 2), Shape(4096, 256, 2), Shape(8192, 512, 2), Shape(16384, 512, 2)]
CFG = Dpo()


class Ours(Grouped):
    """`preference_loss` on summed scores; both responses are wanted at once."""

    def losses(self) -> Iterator[Tensor]:
        chosen, rejected = torch.cat(list(self.scores())).sum(1, keepdim=True)
        yield preference_loss(chosen, rejected, *_reference(self.setting), CFG, pairs=1)[0]


class Trl(Side):
    """`DPOTrainer._compute_loss` with a stand-in for the trainer: the settings that it reads."""

    def __init__(self, setting: Setting) -> None:
        outputs = ("log_probs", "entropy", "mean_logits", "is_top1")
        super().__init__(setting, trl_model(setting, outputs))
        from accelerate import Accelerator
        from trl.trainer.dpo_trainer import DPOTrainer

        self.trainer = SimpleNamespace(
            accelerator=Accelerator(cpu=setting.device == "cpu"), model=self.model, beta=CFG.beta,
            label_smoothing=CFG.label_smoothing, loss_types=["sigmoid"], loss_weights=[1.0],
            f_divergence_type="reverse_kl", ld_alpha=None, use_weighting=False,
            precompute_ref_logps=True, aux_loss_enabled=False,
            _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
        )  # fmt: skip
        self.compute_loss = MethodType(DPOTrainer._compute_loss, self.trainer)

    def inputs(self) -> dict[str, Tensor]:
        ids = self.setting.sequences()
        answers = torch.ones_like(ids)
        answers[:, : self.setting.shape.P] = 0
        chosen, rejected = _reference(self.setting)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "completion_mask": answers,
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        }

    def losses(self) -> Iterator[Tensor]:
        yield self.compute_loss(self.model, self.inputs(), False)

    @torch.no_grad()
    def logprobs(self) -> Tensor:
        inputs = self.inputs()
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        labels = ids.masked_fill(inputs["completion_mask"] == 0, -100)
        scored = self.model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        return scored.log_probs[:, -self.setting.shape.R :]


class OpenRlhf(Side):
    """The forward and the loss of OpenRLHF's `DPOTrainer.fit`."""

    def __init__(self, setting: Setting) -> None:
        self.actor = openrlhf_actor(setting)
        super().__init__(setting, self.actor.model)
        from openrlhf.models.loss import DPOLoss
        from openrlhf.trainer.dpo_trainer import DPOTrainer

        trainer = SimpleNamespace(
            strategy=SimpleNamespace(ring_attn_group=None),
            tokenizer=SimpleNamespace(pad_token_id=0),
        )
        for name in ("concatenated_inputs", "_get_batch_logps"):
            setattr(trainer, name, MethodType(getattr(DPOTrainer, name), trainer))
        self.forward = MethodType(DPOTrainer.concatenated_forward, trainer)
        self.loss = DPOLoss(CFG.beta, CFG.label_smoothing)

    def losses(self) -> Iterator[Tensor]:
        chosen, rejected = self.setting.sequences().split(1)
        mask, prompts = torch.ones_like(chosen), [self.setting.shape.P]
        sums = self.forward(self.actor, chosen, mask, rejected, mask, prompts)[:2]
        yield self.loss(*sums, *_reference(self.setting))[0]

    @torch.no_grad()
    def logprobs(self) -> Tensor:
        ids = self.setting.sequences()
        mask = torch.ones_like(ids)
        scored = self.actor(ids, attention_mask=mask, return_output=True, return_logprobs=True)[0]
        return scored[:, -self.setting.shape.R :]


def _reference(setting: Setting) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of chosen and rejected, as a reference may have recorded them."""
    R, device = setting.shape.R, setting.device
    return torch.tensor([-8.0 * R], device=device), torch.tensor([-8.1 * R], device=device)


SIDES = {
    "ours": Ours,
    "repeated": lambda setting: Ours(setting, repeated=True),
    "trl": Trl,
    "openrlhf": OpenRlhf,
}


def rounds(side: str, shape: Shape) -> int:  # noqa: ARG001
    return 3 if shape.P >= 4096 else 5


if __name__ == "__main__":
    about = arguments(__doc__.splitlines()[0], SHAPES, CUDA_SHAPES)
    main("dpo", about, SIDES, rounds, __file__)
