"""A snapshot of a run: what the coordinator hands to the display."""

from __future__ import annotations

from dataclasses import dataclass

from veripo_ray.runlog import Stage, stage_label


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot of the run. None means not known yet; accuracy and inconsistency are shares."""

    run: str
    phase: str  # "starting", "initial", "grpo", "dpo", "evaluation", ...
    iteration: int = 0
    phase_index: int = 0  # from 1; 0 before the first phase
    phases: int = 0
    step: int = 0
    steps: int = 0  # 0: not known
    eta_seconds: float | None = None  # until the run ends
    tokens_per_second: float | None = None
    accuracy: float | None = None
    inconsistency: float | None = None
    judged: int = 0  # groups with verdicts, of `groups` in this phase
    groups: int = 0
    pairs: int = 0
    message: str = ""
    stages: tuple[Stage, ...] = ()

    @property
    def label(self) -> str:
        """'grpo 2'; of an evaluation or a start, the iteration says nothing."""
        in_loop = self.phase in ("sft", "grpo", "dpo")
        return stage_label(self.iteration, self.phase) if in_loop else self.phase
