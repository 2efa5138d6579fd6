"""Every setting of a run, typed, with its default and source, checked whole before anything starts.

A recipe is a short YAML of the settings that differ from the defaults here; `load` lays
`key=value` overrides over it. Tags in the descriptions: [paper] VerIPO, arXiv 2505.19000;
[mm-eureka] the trainer its authors built on; [ours] a decision of this project.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from veripo_ray.config.base import Count, DType, Fraction, Positive, Settings
from veripo_ray.config.phases import DpoPhase, GrpoPhase, Phase, SftPhase
from veripo_ray.config.placement import Placement
from veripo_ray.config.tracking import Tracking
from veripo_ray.config.verifier import JudgeName, Pairs, Verifier, judge_problems, wants_vllm
from veripo_ray.config.weights import TransportName, Weights
from veripo_ray.storage import is_uri, local_folder


class TinyWorldData(Settings):
    """Questions of the tiny world, written into the run's folder when a run starts."""

    train: Count = 512
    heldout: Count = 400
    seed: int = 0


class Data(Settings):
    """Where questions come from: either files or the tiny world."""

    train: Path | None = None
    heldout: Path | None = None
    tinyworld: TinyWorldData | None = None
    format: Literal["auto", "veripo", "video_r1", "veripo_paper", "openrlhf", "parquet"] = "auto"
    video_root: Path | None = Field(None, description="relative video paths start here")
    max_bad_share: Fraction = Field(0.1, description="stop when more of the questions are unusable")


class Video(Settings):
    """How a clip is sampled from a file [paper: evaluation settings]."""

    fps: Positive = 2.0
    max_frames: Count = 128
    max_pixels: Count = Field(200_704, description="a frame, after resizing")
    min_pixels: Count = 3_136
    decode_timeout_s: Positive = 60.0


class Features(Settings):
    """What the frozen tower makes of clips and images: once, then kept [ours]."""

    cache_dir: Path | None = Field(
        None, description="across runs; None: veripo-ray/features in $XDG_CACHE_HOME or ~/.cache"
    )
    cache_gb: Annotated[float, Field(ge=0)] = Field(
        20.0, description="of that folder at most; the longest unused go first; 0: no cache"
    )
    live_gb: Positive | None = Field(
        None, description="of features in the object store at once; None: half of the store"
    )
    decoders: Count = Field(2, description="files decoded side by side, a CPU each")


class Prompt(Settings):
    """Which texts ask the question: a name of veripo_ray/prompts or a file of the user's."""

    template: str = "veripo"


class Rollout(Settings):
    """vLLM workers that sample."""

    workers: Count = Field(1, description="a lost one is replaced when the cluster has room")
    min_workers: Count = Field(
        1, description="fewer, and sampling waits until there are so many again [ours]"
    )
    max_workers: Count | None = Field(
        None,
        description="the cluster, and its autoscaler, is asked for so many, one at a time beyond "
        "`workers`; None: as many as `workers` [ours]",
    )
    join_timeout_s: Positive = Field(
        900.0, description="longest wait for min_workers; a new worker may take as long to start"
    )
    group_size: Annotated[int, Field(ge=2)] = 8  # [paper]
    temperature: Positive = 1.0  # [paper]
    max_tokens: Count = 2048
    max_model_len: Count = 21_504  # a video's 16,384, some 1,000 of text, 4,096 new ones
    max_num_seqs: Count = 128
    kv_cache_gb: Positive = 1.0
    gpu_memory_utilization: Fraction = 0.85
    tensor_parallel: Count = 1
    dtype: DType = "bfloat16"

    @property
    def most_workers(self) -> int:
        """Rollout workers there may be at once."""
        return self.max_workers or self.workers


Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Lora(Settings):
    """Low-rank adapters on the language model's matrices; all else of the model rests [ours]."""

    rank: Count = 32
    alpha: Positive = Field(64.0, description="adapters count alpha / rank times")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="of adapters' inputs, in sft phases alone"
    )
    targets: tuple[Projection, ...] = Field(get_args(Projection), min_length=1)


class Learner(Settings):
    """DeepSpeed ranks that train."""

    ranks: Count = 1
    zero_stage: Literal[0, 1, 2, 3] = 0
    dtype: DType = "bfloat16"
    micro_batch_tokens: Count = Field(16_384, description="packed tokens of one forward")
    grad_clip: Positive = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    gradient_checkpointing: bool = False
    train_vision: bool = Field(
        False,
        description="train the vision tower too, in every phase: frames flow instead of features",
    )
    lora: Lora | None = Field(None, description="train adapters; None: every weight")


class Curriculum(Settings):
    """Which questions the next GRPO phase sees."""

    drop_solved: Fraction = Field(0.8, description="share of the solved questions left out [paper]")


class Evaluation(Settings):
    """Held-out evaluation at the start and after every phase."""

    judge: JudgeName | None = Field(
        None,
        description="who judges consistency here; None: the judge that curates, which the report "
        "then says. Reviewers of the paper asked for one that was held out [ours]",
    )

    questions: Count | None = Field(None, description="None: all held-out questions")
    temperature: Annotated[float, Field(ge=0)] = 1e-6  # [paper]
    max_tokens: Count = 4096  # [paper]
    repetition_penalty: Positive = 1.05  # [paper]
    batch: Count = 128


class Run(Settings):
    """A whole run."""

    model: str = Field(
        description="'tinyworld', a folder in Hugging Face layout, or a model on the Hugging Face "
        "Hub: ORGANISATION/NAME, perhaps @REVISION"
    )
    output: Path = Field(Path("runs/run"), description="a folder, or the URI of one: see `storage`")
    storage: str | None = Field(
        None,
        description="URI at which the run is kept (s3://, gs://, abfs://, file://, ...): it works "
        "in `output` and brings every checkpoint there. Set by giving a URI as output, which then "
        "is a folder below ~/.cache/veripo-ray/runs [ours]",
    )
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    schedule: tuple[Phase, ...] = Field(min_length=1)
    data: Data = Data()
    video: Video = Video()
    features: Features = Features()
    prompt: Prompt = Prompt()
    rollout: Rollout = Rollout()
    learner: Learner = Learner()
    placement: Placement = Placement()
    weights: Weights = Weights()
    verifier: Verifier = Verifier()
    pairs: Pairs = Pairs()
    curriculum: Curriculum = Curriculum()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    checkpoint_every: Count = Field(10, description="optimiser steps between checkpoints")
    keep_checkpoints: Count = 2
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3,
        description="times that a run which lost a learner rank, the reference or the encoder goes "
        "back to its last checkpoint by itself [ours]",
    )
    call_timeout_s: Positive = Field(3600.0, description="longest call of an actor: a hang ends")
    max_logprob_gap: Positive = Field(
        1e-3, description="stop when rollout worker and learner differ by more [ours]"
    )

    @property
    def heldout_judge(self) -> JudgeName | None:
        """The judge that evaluates and takes no part in curation; None where it is the same one."""
        judge = self.evaluation.judge
        return None if judge == self.verifier.judge else judge

    @property
    def transport(self) -> TransportName:
        """How weights travel to the rollout workers, once the device is known."""
        if self.weights.transport != "auto":
            return self.weights.transport
        if self.device != "cuda":
            return "object_store"
        return "cuda_ipc" if self.placement.layout == "colocated" else "nccl"

    @property
    def judges(self) -> tuple[JudgeName, ...]:
        """Every judge of the run, once: the one that curates first."""
        heldout = self.heldout_judge
        return (self.verifier.judge, *([heldout] if heldout else []))

    @property
    def asks_vllm(self) -> bool:
        """Whether a judge asks the model that the run serves in vLLM."""
        return any(wants_vllm(name, self.verifier.judges) for name in self.judges)

    @property
    def cold_start(self) -> tuple[SftPhase, ...]:
        """The sft phases, which come before the loop."""
        return tuple(phase for phase in self.schedule if isinstance(phase, SftPhase))

    @property
    def loop(self) -> tuple[GrpoPhase | DpoPhase, ...]:
        """The phases that the coordinator leads."""
        return tuple(phase for phase in self.schedule if not isinstance(phase, SftPhase))

    @model_validator(mode="before")
    @classmethod
    def _uri_as_output(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not is_uri(raw.get("output", "")):
            return raw
        uri = str(raw["output"]).rstrip("/")
        return {**raw, "storage": uri, "output": local_folder(uri)}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [
            *_data_problems(self.data),
            *_schedule_problems(self),
            *_token_problems(self),
            *_lora_problems(self),
            *_worker_problems(self),
            *_judge_problems(self),
            *_layout_problems(self),
            *transport_problems(self),
        ]
        if problems:
            raise ValueError("\n  ".join(problems))
        return self


def _data_problems(data: Data) -> list[str]:
    if data.tinyworld and (data.train or data.heldout):
        return ["data: both files and data.tinyworld are set; keep one of them"]
    if not data.tinyworld and not (data.train and data.heldout):
        return ["data: set data.train and data.heldout to files of questions, or data.tinyworld"]
    return []


def _schedule_problems(run: Run) -> list[str]:
    problems, before = [], None
    for index, phase in enumerate(run.schedule):
        where = f"schedule.{index}"
        if phase.phase == "sft" and before not in (None, "sft"):
            problems.append(f"{where}: sft phases come before all others; move it to the front")
        if phase.phase == "grpo":
            problems += _grpo_problems(where, phase, run)
        if phase.phase == "dpo":
            if before != "grpo":
                problems.append(f"{where}: a dpo phase needs a grpo phase right before it")
            if phase.batch_pairs < run.learner.ranks:
                problems.append(
                    f"{where}.batch_pairs = {phase.batch_pairs} gives some of the "
                    f"{run.learner.ranks} learner ranks nothing; make it at least learner.ranks"
                )
        before = phase.phase
    return problems


def _grpo_problems(where: str, grpo: GrpoPhase, run: Run) -> list[str]:
    problems = []
    if grpo.rollout_batch % grpo.train_batch:
        problems.append(
            f"{where}.rollout_batch = {grpo.rollout_batch} is not a multiple of train_batch = "
            f"{grpo.train_batch}; make it {_next_multiple(grpo.rollout_batch, grpo.train_batch)}"
        )
    if grpo.questions and grpo.questions % grpo.rollout_batch:
        problems.append(
            f"{where}.questions = {grpo.questions} is not a multiple of rollout_batch = "
            f"{grpo.rollout_batch}; make it {_next_multiple(grpo.questions, grpo.rollout_batch)}"
        )
    if grpo.train_batch < run.learner.ranks:
        problems.append(
            f"{where}.train_batch = {grpo.train_batch} gives some of the {run.learner.ranks} "
            "learner ranks nothing; make it at least learner.ranks"
        )
    return problems


def _token_problems(run: Run) -> list[str]:
    longest = max(run.rollout.max_tokens, run.evaluation.max_tokens)
    if longest >= run.rollout.max_model_len:
        room = f"rollout.max_model_len = {run.rollout.max_model_len} leaves no room for a prompt"
        fix = "raise it, or lower rollout.max_tokens and evaluation.max_tokens"
        return [f"{room} before {longest} new tokens; {fix}"]
    return []


def _lora_problems(run: Run) -> list[str]:
    lora, problems = run.learner.lora, []
    if lora and run.learner.train_vision:
        problems.append(
            "learner.train_vision = true would train the whole tower beside adapters; set it to "
            "false, or learner.lora=null to train every weight"
        )
    if lora and run.placement.layout == "colocated" and run.placement.sleep_level == 2:
        problems.append(
            "placement.sleep_level = 2 drops a rollout worker's weights, and learner.lora sends "
            "those back that change; make it 1"
        )
    if lora and len(set(lora.targets)) < len(lora.targets):
        problems.append("learner.lora.targets names one twice; name each once")
    if lora and lora.dropout and not run.cold_start:
        problems.append(
            f"learner.lora.dropout = {lora.dropout:g} is of sft phases, and the schedule has none; "
            "set it to 0"
        )
    return problems


def _worker_problems(run: Run) -> list[str]:
    problems, rollout, workers = [], run.rollout, run.rollout.workers
    if rollout.min_workers > workers:
        problems.append(
            f"rollout.min_workers = {rollout.min_workers} is more than rollout.workers = "
            f"{workers}; lower it, or raise rollout.workers"
        )
    if rollout.most_workers < workers:
        problems.append(
            f"rollout.max_workers = {rollout.max_workers} is fewer than rollout.workers = "
            f"{workers}; raise it, or leave it out"
        )
    if rollout.most_workers > workers and run.placement.layout == "colocated":
        problems.append(
            f"rollout.max_workers = {rollout.max_workers}: further workers would have GPUs of "
            "their own, but placement.layout = colocated; leave it out, or raise rollout.workers"
        )
    return problems


def _judge_problems(run: Run) -> list[str]:
    found = [p for name in run.judges for p in judge_problems(name, run.verifier.judges)]
    return [f"verifier.{problem}" for problem in dict.fromkeys(found)]


def transport_problems(run: Run) -> list[str]:
    """Why weights cannot travel as they are told to; to be asked again when the device is known."""
    name, layout = run.weights.transport, run.placement.layout
    if name in ("nccl", "cuda_ipc") and run.device == "cpu":
        what = f"weights.transport = {name} goes from GPU to GPU, and device = cpu"
    elif name == "cuda_ipc" and layout == "separate":
        what = "weights.transport = cuda_ipc stays within a GPU, and placement.layout = separate"
    elif name == "nccl" and layout == "colocated":
        what = "weights.transport = nccl needs a GPU a process, and placement.layout = colocated"
    else:
        return []
    return [f"{what}; leave it out, and the one that fits is taken"]


def _layout_problems(run: Run) -> list[str]:
    if run.placement.layout == "separate":
        return []
    problems = []
    if run.rollout.tensor_parallel > 1:
        problems.append(
            f"rollout.tensor_parallel = {run.rollout.tensor_parallel} does not go with "
            "placement.layout = colocated, where a worker has a part of one GPU; make it 1, or the "
            "layout separate"
        )
    if run.placement.sleep_level == 2 and run.learner.lora:
        problems.append(
            "placement.sleep_level = 2 drops every weight of a rollout worker, and learner.lora "
            "sends only those that adapters change; make it 1"
        )
    problems += [
        f"schedule.{index}.staleness = 1 samples while the learner works, and in "
        "placement.layout = colocated workers sleep then; make it 0, or the layout separate"
        for index, phase in enumerate(run.schedule)
        if phase.phase == "grpo" and phase.staleness
    ]
    return problems


def _next_multiple(value: int, of: int) -> int:
    return -(-value // of) * of
