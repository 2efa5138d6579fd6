"""Settings of the verifier: checks, judges, endpoint, and the pairs made of its verdicts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from veripo_ray.config.base import Count, DType, Fraction, Positive, Settings
from veripo_ray.records import Family


class Checks(Settings):
    """Thresholds of the verifier's checks [ours]."""

    min_think_tokens: Annotated[int, Field(ge=0)] = 8
    max_think_tokens: Count = 4096
    repetition_ngram: Count = 8
    max_repetition: Fraction = Field(0.2, description="share of tokens inside repeated n-grams")
    numeric_correct: Fraction = Field(
        0.9, description="mean relative accuracy that counts as right"
    )
    reflective_words: tuple[str, ...] = Field(
        (
            "wait", "hold on", "hmm", "on second thought", "let me check", "let me double-check",
            "let me verify", "let me re*", "double-check*", "re-check*", "recheck*", "re-examin*",
            "reexamin*", "reconsider*", "however", "but actually",
        ),
        description="phrases that turn a chain round; a final * stands for any word ending",
    )  # fmt: skip


JudgeName = Literal["rules", "tinyworld", "vllm", "openai", "committee"]


class YesNo(Settings):
    """What judges that ask a language model have in common [ours].

    The model is asked whether the answer follows from the thinking, and may say one word; its
    probability of `yes`, of `yes` and `no`, is what the judge goes by.
    """

    prompt: str = Field("consistency", description="a name of veripo_ray/prompts/judge or a file")
    threshold: Fraction = Field(
        0.5, description="consistent from this probability on; `veripo judge-calibrate` picks one"
    )
    undecided: Fraction = Field(
        0.0, description="closer to the threshold than this is no decision, and no error"
    )


class VllmJudge(YesNo):
    """A language model in vLLM, served beside the verifier on Ray Serve."""

    model: str | None = Field(None, description="a folder in Hugging Face layout")
    replicas: Count = 1
    gpus: Annotated[float, Field(ge=0)] = Field(0, description="a replica's; 0: on the CPU")
    cpus: Count = Field(1, description="a replica's; on the CPU also its threads")
    dtype: DType = "bfloat16"
    max_batch: Count = Field(64, description="cases in one step of the engine")
    batch_wait_s: Annotated[float, Field(ge=0)] = 0.005
    max_model_len: Count = Field(8192, description="longer cases get an error, and no verdict")
    kv_cache_gb: Positive = Field(1.0, description="on a CPU; whole gigabytes")
    gpu_memory_utilization: Fraction = 0.85
    timeout_s: Positive = Field(30.0, description="of a case, waiting included")


class OpenAiJudge(YesNo):
    """A language model behind any OpenAI-compatible URL."""

    url: str | None = Field(None, description="such as http://host:8000/v1")
    model: str | None = Field(None, description="as that server calls it")
    api_key_env: str = Field("OPENAI_API_KEY", description="the environment variable with the key")
    logprobs: bool = Field(
        True, description="read probabilities of yes and no; False: the one word that is said"
    )
    parallel: Count = Field(16, description="cases under way at once")
    attempts: Count = Field(4, description="of a case, on 408, 429, 5xx and broken connections")
    timeout_s: Positive = Field(
        30.0, description="of a case, all its attempts included, once it is under way"
    )
    breaker_failures: Count = Field(
        8, description="failed cases in a row that open the circuit: then cases fail at once"
    )
    breaker_pause_s: Positive = Field(15.0, description="until an open circuit lets one case try")


class Committee(Settings):
    """Several judges, and what their disagreement means."""

    members: tuple[Literal["rules", "tinyworld", "vllm", "openai"], ...] = ()
    rule: Literal["unanimous", "majority", "any_no"] = Field(
        "unanimous",
        description="unanimous: all say the same, or there is no decision; majority: of those that "
        "decide, a tie is no decision; any_no: one that finds a contradiction suffices",
    )


class Judges(Settings):
    """The judges that a verifier can have, by name. `rules` and `tinyworld` need no settings."""

    vllm: VllmJudge = VllmJudge()
    openai: OpenAiJudge = OpenAiJudge()
    committee: Committee = Committee()


class Verifier(Settings):
    """The verifier's endpoint and its judge."""

    judge: JudgeName = Field("rules", description="who curates: its verdicts become pairs")
    judges: Judges = Judges()
    checks: Checks = Checks()
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65_535)] = 8000
    replicas: Count = 1
    timeout_s: Positive = 60.0
    max_items: Count = Field(4096, description="responses in one request")
    max_body_mb: Positive = 16.0


class Pairs(Settings):
    """How rollouts become preference pairs [ours]."""

    per_question: Count = 2
    families: dict[Family, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: dict.fromkeys(Family, 1.0),
        description="wanted share of each family, relative; 0 leaves it out",
    )
    quotas: dict[Family, Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict,
        description="most pairs of a family in a phase or a file; one not named has no bound",
    )
    max_length_ratio: Positive = Field(4.0, description="longer side over shorter, in tokens")
    reflective_turn: str = Field(
        "Wait, let me check that again.",
        min_length=1,
        description="joins wrong and right thinking in edited reflection pairs",
    )


def judge_problems(name: JudgeName, judges: Judges) -> list[str]:
    """What keeps this judge from working, each with the setting's name below `judges`."""
    problems = []
    if name == "vllm" and not judges.vllm.model:
        problems.append("judges.vllm.model is not set; name a folder in Hugging Face layout")
    if name == "openai" and not (judges.openai.url and judges.openai.model):
        problems.append("judges.openai.url and .model are not set; name a server and its model")
    if name == "committee":
        members = judges.committee.members
        if len(set(members)) < 2:
            problems.append(
                f"judges.committee.members = {list(members)} is no committee; name two or more"
            )
        problems += [problem for member in members for problem in judge_problems(member, judges)]
    return problems


def wants_vllm(name: JudgeName, judges: Judges) -> bool:
    """Whether this judge needs the deployment that serves a model in vLLM."""
    return name == "vllm" or (name == "committee" and "vllm" in judges.committee.members)
