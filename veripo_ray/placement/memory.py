"""How much memory a process of each role takes on each of its GPUs: an estimate, by part.

What is counted exactly: weights, gradients, optimiser states (`states`) and keys and values, from
the model's geometry. What is estimated: activations, for the longest group that the settings allow
(its prompt fills rollout.max_model_len but for max_tokens, and every response has that many), since
a run must survive that one (a pair is a group of two); and `buffers`, what CUDA, its libraries and
the allocator hold.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from veripo_ray import config
from veripo_ray.placement.geometry import Geometry
from veripo_ray.placement.roles import Process, Role

BYTES = {"float32": 4, "bfloat16": 2}
CONTEXT = 0.7e9  # a process's CUDA context, library workspaces and fragments of the allocator
GRAPHS = 0.5e9  # vLLM's CUDA graphs, beyond
LOGIT_ROWS = 1024  # rows of logits at a time: `policy.grouped`
BUCKET = 500_000_000  # elements: `learner.engine.MAX_BUCKET`
MIN_BATCHED = 8192  # tokens of a step of vLLM's: `sampler.engine`


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU. features: media of the questions in work."""

    weights: float = 0.0
    gradients: float = 0.0
    optimiser: float = 0.0
    activations: float = 0.0
    kv_cache: float = 0.0
    features: float = 0.0
    buffers: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, part.name) for part in fields(self))

    @property
    def resting(self) -> float:
        """What stays while the process does nothing."""
        return self.weights + self.optimiser + self.gradients + self.kv_cache + self.buffers


def states(
    weights: float,
    trained: float,
    *,
    ranks: int,
    stage: int,
    weight_bytes: int = 2,
    gradient_bytes: tuple[int, int] = (2, 0),
    optimiser_bytes: int = 12,
) -> Memory:
    """Model states of one rank of mixed-precision Adam under a ZeRO stage.

    weights, trained: numbers of parameters. gradient_bytes: of a parameter's gradient, and of a
    second copy in another precision, which stage 2 and 3 do not keep. optimiser_bytes: float32
    copy of the weight, and Adam's two moments.
    ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, arXiv 1910.02054, table 1
    and section 5: stage 1 divides optimiser states by the number of ranks, 2 gradients too, 3
    parameters too.
    """
    first, second = gradient_bytes
    return Memory(
        weights=weight_bytes * weights / (ranks if stage == 3 else 1),
        gradients=first * trained / ranks if stage >= 2 else (first + second) * trained,
        optimiser=optimiser_bytes * trained / (ranks if stage >= 1 else 1),
    )


def of_process(
    process: Process, run: config.Run, model: Geometry, gpu_memory: float | None
) -> Memory:
    """What the process needs on each of its GPUs. gpu_memory: that GPU's, of which vLLM takes its
    share whole: what is left to it goes to its cache."""
    if process.role == Role.ROLLOUT:
        return _worker(run, model, gpu_memory)
    if process.role == Role.LEARNER:
        return _rank(run, model)
    if process.role == Role.REFERENCE:
        return _reference(run, model)
    if process.role == Role.ENCODER:
        return _encoder(run, model)
    if process.role == Role.JUDGE and process.gpus:
        share = run.verifier.judges.vllm.gpu_memory_utilization
        return Memory(kv_cache=share * (gpu_memory or 0.0))
    return Memory()


def longest_group(run: config.Run) -> int:
    """Tokens of the longest packed row of a grpo step that the settings allow."""
    return _longest(run, run.rollout.group_size)


def longest_pair(run: config.Run) -> int:
    """The same of a dpo step."""
    return _longest(run, 2)


def _longest(run: config.Run, responses: int) -> int:
    rollout = run.rollout
    prompt = rollout.max_model_len - rollout.max_tokens
    return max(run.learner.micro_batch_tokens, prompt + responses * rollout.max_tokens)


# --- the learner ----------------------------------------------------------------------------------


def _rank(run: config.Run, model: Geometry) -> Memory:
    learner, cpu = run.learner, run.device == "cpu"
    weight = BYTES[learner.dtype]
    weights = model.parameters + (model.tower.parameters if learner.train_vision else 0)
    adapters = model.adapters(learner.lora) if learner.lora else 0
    trained = adapters or weights
    memory = states(
        weights + adapters,
        trained,
        ranks=learner.ranks,
        stage=_stage(learner),
        weight_bytes=weight,
        gradient_bytes=_gradient_bytes(learner),
        optimiser_bytes=12 if _stage(learner) else 8,  # without ZeRO in float32: moments alone
    )
    return replace(
        memory,
        activations=_training(run, model),
        features=_media(run, model, weight),
        buffers=(0.0 if cpu else CONTEXT) + _buckets(learner, model, trained),
    )


def _stage(learner: config.Learner) -> int:
    """As `learner.engine` has it: in bfloat16 stage 1 stands for 0."""
    return max(learner.zero_stage, 1) if learner.dtype == "bfloat16" else learner.zero_stage


def _gradient_bytes(learner: config.Learner) -> tuple[int, int]:
    """Gradients add up in float32. Beside them, in bfloat16 and stage 1, DeepSpeed's BF16_Optimizer
    keeps those of the backward pass."""
    return (4, 2) if learner.dtype == "bfloat16" and _stage(learner) == 1 else (4, 0)


def _buckets(learner: config.Learner, model: Geometry, trained: int) -> float:
    """Where several ranks communicate: a bucket of gradients and one of weights, and under ZeRO-3
    the gathered head and the layer at work."""
    if learner.ranks == 1:
        return 0.0
    weight = BYTES[learner.dtype]
    gathered = model.vocab * model.hidden + 2 * model.layer_parameters
    return 2 * weight * min(trained, BUCKET) + (
        weight * gathered if learner.zero_stage == 3 else 0.0
    )


def _training(run: config.Run, model: Geometry) -> float:
    """Activations kept for the backward pass, and the logits of a chunk.

    A layer keeps the inputs of its matrices and of its norms (these once more in float32), as
    Korthikanti et al., arXiv 2205.05198, section 4.1, count them, without scores of attention. With
    gradient checkpointing every layer keeps its input, and one of them all.
    """
    tokens, weight = longest_group(run), BYTES[run.learner.dtype]
    inside = weight * (
        4 * model.hidden + 2 * model.attention + 2 * model.kv + 4 * model.intermediate
    )
    layer = tokens * (inside + 2 * 4 * model.hidden)
    if run.learner.gradient_checkpointing:
        kept = model.layers * tokens * model.hidden * weight + layer
    else:
        kept = model.layers * layer
    return kept + _logits(model, LOGIT_ROWS, weight + 4 + weight)  # with both gradients


# --- the others -----------------------------------------------------------------------------------


def _reference(run: config.Run, model: Geometry) -> Memory:
    """It scores pairs, and groups where GRPO has a KL term."""
    groups = any(phase.phase == "grpo" and phase.kl_coef for phase in run.schedule)
    tokens = longest_group(run) if groups else longest_pair(run)
    weight = BYTES[run.learner.dtype]
    vision = model.tower.parameters if run.learner.train_vision else 0
    return Memory(
        weights=weight * (model.parameters + vision),
        activations=_forward(model, tokens, weight) + _logits(model, LOGIT_ROWS, weight),
        features=_media(run, model, weight),
        buffers=0.0 if run.device == "cpu" else CONTEXT,
    )


def _worker(run: config.Run, model: Geometry, gpu_memory: float | None) -> Memory:
    """On a GPU: with a cache of all that is left of its share, and at least of one whole sequence,
    without which vLLM does not start."""
    rollout, weight = run.rollout, BYTES[run.rollout.dtype]
    wide = rollout.tensor_parallel
    vision = model.tower.parameters if run.learner.train_vision else 0
    tokens = max(rollout.max_model_len, MIN_BATCHED)
    least = Memory(
        weights=weight * (model.parameters + vision) / wide,
        activations=_forward(model, tokens, weight, wide)
        + _logits(model, rollout.max_num_seqs, weight) / wide,
        features=_media(run, model, weight),
        buffers=0.0 if run.device == "cpu" else CONTEXT + GRAPHS,
    )
    one = rollout.max_model_len * kv_bytes(model, weight, wide)
    if run.device == "cpu":
        return replace(least, kv_cache=rollout.kv_cache_gb * 1e9)
    share = rollout.gpu_memory_utilization * gpu_memory if gpu_memory else 0.0
    return replace(least, kv_cache=max(one, share - least.total))


def kv_bytes(model: Geometry, weight_bytes: int, wide: int = 1) -> float:
    """Keys and values of one token on one GPU of a tensor-parallel group of `wide`."""
    heads = max(1.0, model.kv_heads / wide)
    return 2 * model.layers * heads * model.head_dim * weight_bytes


def _encoder(run: config.Run, model: Geometry) -> Memory:
    if run.learner.train_vision:  # it makes frames only
        return Memory()
    tower, weight = model.tower, 4 if run.device == "cpu" else 2
    patches = video_tokens(run, model) * tower.merge**2
    return Memory(
        weights=weight * tower.parameters,
        activations=patches * tower.hidden * weight * 12,
        features=_media(run, model, weight),
        buffers=0.0 if run.device == "cpu" else CONTEXT,
    )


def video_tokens(run: config.Run, model: Geometry) -> int:
    """Of the longest clip at its largest, as far as a prompt has room for them."""
    tower, video = model.tower, run.video
    a_frame = video.max_pixels // (tower.patch * tower.merge) ** 2
    steps = -(-video.max_frames // tower.temporal)
    return min(a_frame * steps, run.rollout.max_model_len - run.rollout.max_tokens)


def _media(run: config.Run, model: Geometry, weight: int) -> float:
    return float(video_tokens(run, model) * model.tower.feature_size * weight)


def _forward(model: Geometry, tokens: int, weight: int, wide: int = 1) -> float:
    """One layer at a time: its input, norm and output, and the widest matrices' outputs."""
    return tokens * weight * (4 * model.hidden + 3 * model.intermediate / wide)


def _logits(model: Geometry, rows: int, weight: int) -> float:
    """`weight` bytes as they are computed, then in float32, and their exponentials."""
    return float(rows * model.vocab * (weight + 4 + 4))
