"""The only place that touches DeepSpeed: one optimiser over the parameters of a policy.

What DeepSpeed must be told otherwise than by its defaults, and why:

- Our losses are sums over global denominators. DeepSpeed averages gradients over ranks, so a loss
  is multiplied by the number of ranks; `scale_wrt_gas=False` stops the division by accumulation
  steps, whose number differs from step to step (`managed_gradient_accumulation=False`).
- The default buckets hold 5e8 elements, 2 GB allocated whatever the model's size: ours are at most
  the size of the model.
- The shared-memory collectives for CPUs would be compiled with g++ on first use, 60-100 s of
  silence: gloo does the work instead.
- bfloat16 without ZeRO: DeepSpeed has no unsharded optimiser that accumulates gradients in float32.
  Its stage 1 has, and computes the same, so that is what stage 0 means there.
- Of several gathers at once DeepSpeed waits for the last alone. A GPU stream keeps their order;
  gloo finishes them in any, and a weight not there yet would be read: on a CPU they go one by one.
- ZeRO-3 gathers matrices only (biases and norms stay whole), and never ahead of use. Ranks call
  the output head different numbers of times (a call a chunk of rows), and a collective that one
  rank skips hangs them all: so the head is gathered once a forward and once a backward, and no
  prefetch is guessed from the order of the last step.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from veripo_ray import config
from veripo_ray.errors import CheckpointError
from veripo_ray.policy.lora import Weight

ADAM_BETAS = (0.9, 0.95)
MAX_BUCKET = 500_000_000  # elements
TAG = "engine"  # the name of its folder in a checkpoint
GATHER_ELEMENTS = 64 << 20  # gathered at a time under ZeRO-3: a few layers of a large model


class _Computation(nn.Module):
    """What DeepSpeed wraps. Its hooks act on a module's forward, and ours is a function that calls
    the policy's parts in its own order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


def _deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for this device: quiet, and without its compiled CPU collectives."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", "0")  # its launcher's habit; the device is already chosen
    warnings.filterwarnings("ignore", message=r".*_tensor` is deprecated", category=FutureWarning)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # `comm/torch.py: build_shm_op` asks this table; False means "do not build, use gloo".
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _no_prints() -> Iterator[None]:
    """Some of DeepSpeed's optimisers print their memory use, past every log level."""
    with redirect_stdout(io.StringIO()):
        yield


class Engine:
    """Forward, backward and optimiser steps of `parameters` on this rank.

    model: the policy's module, in cfg.dtype, on `device`. parameters: what is trained, by
    checkpoint name, in an order equal on all ranks. reused: those that one forward may use any
    number of times. The process group must exist.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        cfg: config.Learner,
        device: torch.device,
        *,
        reused: Sequence[nn.Parameter] = (),
    ) -> None:
        self.parameters = dict(parameters)
        self.world_size = dist.get_world_size()
        self.rank = dist.get_rank()
        self.device = device
        self.stage = max(cfg.zero_stage, 1) if cfg.dtype == "bfloat16" else cfg.zero_stage
        self._clip = cfg.grad_clip
        self._norm = 0.0
        self._lib = _deepspeed(device)
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=0.0,  # set before every step
            betas=ADAM_BETAS,
            weight_decay=cfg.weight_decay,
            fused=True,
        )
        if self.stage == 0:  # DeepSpeed clips there, but tells nobody the norm
            self._optimizer.register_step_pre_hook(self._clip_whole)
        with _no_prints():
            self._engine, *_ = self._lib.initialize(
                model=_Computation(model),
                optimizer=self._optimizer,
                config=self._settings(cfg, model),
                dist_init_required=False,
            )
        if self.stage == 3:
            for parameter in reused:
                self._lib.zero.register_external_parameter(self._engine.module, parameter)

    def _settings(self, cfg: config.Learner, model: nn.Module) -> dict[str, Any]:
        """DeepSpeed's configuration; the module's docstring says why."""
        elements = sum(parameter.numel() for parameter in self.parameters.values())
        vectors = [p.numel() for p in model.parameters() if p.ndim == 1]
        bucket = min(elements, MAX_BUCKET)
        zero = {
            "stage": self.stage,
            "overlap_comm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": 0,
            "stage3_param_persistence_threshold": max(vectors, default=0) + 1,
            "stage3_allgather_sequential": self.device.type == "cpu",
        }
        bfloat16 = cfg.dtype == "bfloat16"
        return {
            "train_micro_batch_size_per_gpu": 1,  # a label: micro-batches are cut by tokens
            "managed_gradient_accumulation": False,
            "gradient_clipping": cfg.grad_clip if self.stage else 0.0,
            "zero_optimization": zero,
            "bf16": {"enabled": bfloat16},
            "data_types": {"grad_accum_dtype": "fp32"},
            "steps_per_print": None,
        }

    def accumulate(self, compute: Callable[[], Tensor]) -> None:
        """Add the gradient of `compute()`, a scalar loss, summed over ranks. Every rank must call
        this equally often in a step."""
        loss = self._engine(compute)
        self._engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def evaluate(self, compute: Callable[[], Any]) -> Any:
        """Run `compute()` without gradients. Under ZeRO-3 every rank must call it equally often."""
        with torch.no_grad():
            return self._engine.module(compute)

    def step(self, lr: float) -> float:
        """Clip, update, clear the gradients. Returns the gradient's norm before clipping."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return self._norm if self.stage == 0 else float(self._engine.get_global_grad_norm())

    def _clip_whole(self, *_: Any) -> None:
        self._norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self._clip))

    def each_whole(self, weights: Mapping[str, Weight]) -> Iterator[tuple[str, Weight]]:
        """Every weight in turn with all elements of its parts there, a few layers gathered at a
        time; only until the next is asked for. Collective under ZeRO-3."""
        for names in _batches(weights, GATHER_ELEMENTS):
            with self._whole([part for name in names for part in weights[name].parts]):
                for name in names:
                    yield name, weights[name]

    def _whole(
        self, parameters: Sequence[nn.Parameter], *, to_write: bool = False
    ) -> AbstractContextManager[None]:
        if self.stage < 3:
            return nullcontext()
        # A pass without gradients leaves what it had begun to fetch for the next one on its way,
        # and what is on its way cannot be put back when we are done.
        self._engine.optimizer.empty_partition_cache()
        writer = 0 if to_write else None  # who writes for all; all write alike
        return self._lib.zero.GatheredParameters(list(parameters), modifier_rank=writer)

    def values(self) -> dict[str, Tensor]:
        """A copy of all that trains. Collective under ZeRO-3."""
        with self._whole([*self.parameters.values()]):
            return {name: weight.detach().clone() for name, weight in self.parameters.items()}

    @contextmanager
    def holding(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Other values for all that trains, and then again the present ones, to the bit. No step
        may be made meanwhile. Collective under ZeRO-3."""
        own = self.values()
        self._put(values)
        try:
            yield
        finally:
            self._put(own)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad(), self._whole([*self.parameters.values()], to_write=True):
            for name, weight in self.parameters.items():
                weight.copy_(values[name])

    def save(self, folder: Path) -> None:
        """Write this rank's part of optimiser and weights. Collective."""
        self._engine.save_checkpoint(
            str(folder), tag=TAG, exclude_frozen_parameters=True, save_latest=False
        )

    def load(self, folder: Path) -> None:
        """Read what `save` wrote with the same stage and number of ranks. Collective."""
        if not any((folder / TAG).glob("*.pt")):
            raise CheckpointError(
                f"{folder} holds no optimiser state",
                fix="resume from another checkpoint of the run",
            )
        with _no_prints():
            self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)


def _batches(weights: Mapping[str, Weight], elements: int) -> Iterator[list[str]]:
    """Names in order, cut so that each batch has about `elements` elements."""
    names: list[str] = []
    filled = 0
    for name, weight in weights.items():
        size = sum(getattr(part, "ds_numel", part.numel()) for part in weight.parts)
        if names and filled + size > elements:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    if names:
        yield names
