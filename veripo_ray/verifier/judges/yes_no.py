"""The judge that asks a language model whether the answer follows from the thinking."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from veripo_ray import config
from veripo_ray.prompts import judge as prompts
from veripo_ray.verifier.judges import conclusions
from veripo_ray.verifier.judges.ask import Answered, Ask
from veripo_ray.verifier.judges.case import Case, Judgement


class YesNo:
    """Renders one prompt a case, asks all that have something to compare, and applies the
    threshold. name: what the settings call the model's place, "vllm" or "openai".

    Raises ConfigError at once for a prompt that cannot be used.
    """

    def __init__(self, name: str, ask: Ask, cfg: config.YesNo) -> None:
        prompts.read(cfg.prompt)
        self.name, self.ask, self._cfg = name, ask, cfg

    async def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        whole = [index for index, case in enumerate(cases) if not _gap(case)]
        rendered = await asyncio.to_thread(self._render, [cases[index] for index in whole])
        answers = await self.ask(rendered) if rendered else []
        answered = dict(zip(whole, answers, strict=True))
        return await asyncio.to_thread(self._judgements, cases, answered)

    def _render(self, cases: Sequence[Case]) -> list[str]:
        return [
            prompts.render(
                self._cfg.prompt,
                question=case.question,
                options=case.options,
                thinking=case.thinking,
                answer=case.answer,
            )
            for case in cases
        ]

    def _judgements(
        self, cases: Sequence[Case], answered: dict[int, Answered | str]
    ) -> list[Judgement]:
        return [self._judgement(case, answered.get(index)) for index, case in enumerate(cases)]

    def _judgement(self, case: Case, answered: Answered | str | None) -> Judgement:
        if answered is None:
            return Judgement(None, f"not asked, since {_gap(case)}")
        if isinstance(answered, str):
            return Judgement.failed(answered)
        consistent = self._decide(answered)
        found = conclusions.find(case.thinking, case.kind, case.options)
        return Judgement(
            consistent,
            self._reason(case, answered, consistent),
            evidence=found.span if found else None,
            probability=answered.probability,
        )

    def _decide(self, answered: Answered) -> bool | None:
        """By the threshold; by the word alone where the probability is unknown."""
        if answered.probability is None:
            return answered.yes
        above = answered.probability - self._cfg.threshold
        return None if abs(above) < self._cfg.undecided else above >= 0

    def _reason(self, case: Case, answered: Answered, consistent: bool | None) -> str:
        answer = repr(" ".join(case.answer.split())[:80])
        said = {True: "follows", False: "does not follow", None: "may or may not follow"}
        reason = f"the judge {self.name} says that the answer {answer} {said[consistent]}"
        reason += " from the thinking"
        if answered.probability is None:
            return reason
        reason += f": P(yes) = {answered.probability:.3f}, threshold {self._cfg.threshold:g}"
        return reason + (f" +- {self._cfg.undecided:g}" if self._cfg.undecided else "")


def _gap(case: Case) -> str:
    """What is missing for a comparison."""
    if not case.thinking.strip():
        return "the thinking is empty"
    return "" if case.answer.strip() else "the answer is empty"
