"""Questions become work: prompt and features for each, unusable ones named and left out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from veripo_ray.errors import DataError
from veripo_ray.questions import LeftOut
from veripo_ray.records import Question
from veripo_ray.runlog import BadItem


@dataclass(frozen=True, slots=True)
class Task:
    """A question ready to be asked: prompt ids [p] with one placeholder an item of media, and a
    reference to its features in the object store."""

    question: Question
    prompt_ids: np.ndarray
    features: Any


class Feed:
    """Encodes each clip once a run, ahead of its use, and keeps the references, never the data."""

    def __init__(
        self,
        encode: Callable[[Question], Awaitable[Any]],
        prompt: Callable[[Question], np.ndarray],
        *,
        max_bad_share: float,
        total: int,
        left_out: LeftOut | None = None,
    ) -> None:
        """total: all rows there were; left_out: those of them that could not be read, which count
        against the share as bad media do. Raises DataError as `report` does."""
        self._encode, self._prompt = encode, prompt
        self._max_bad, self._total = max_bad_share, total
        self._features: dict[tuple[str, ...], asyncio.Task[Any]] = {}
        self._unusable: set[str] = set()  # ids, at most the set share of all questions
        self.left_out = LeftOut() if left_out is None else left_out.model_copy(deep=True)
        self._check_share()

    @property
    def videos(self) -> int:
        """Distinct clips that could be used."""
        good = [media for media, task in self._features.items() if _succeeded(task)]
        return sum(media[0] == "video" for media in good)

    def report(self, question: Question, reason: str) -> None:
        """Count a question as unusable; DataError when they are more than the set share."""
        if question.id not in self._unusable:
            self._unusable.add(question.id)
            self.left_out.add(BadItem(name=question.id, reason=reason))
            self._check_share()

    def _check_share(self) -> None:
        bad = self.left_out
        if bad.count > self._max_bad * self._total:
            raise DataError(
                f"{bad.count} of {self._total} questions are unusable, more than "
                f"data.max_bad_share = {self._max_bad:g} allows:\n{bad.told(10)}",
                fix="mend or remove these files, or raise data.max_bad_share",
            )

    async def tasks(self, questions: Sequence[Question]) -> list[Task]:
        """The usable ones of these questions, in order."""
        self.prefetch(questions)
        made = [await self._task(question) for question in questions]
        return [task for task in made if task]

    def prefetch(self, questions: Sequence[Question]) -> None:
        """Begin to encode the clips that have not been."""
        for question in questions:
            media = _media(question)
            if media not in self._features:
                self._features[media] = asyncio.ensure_future(self._encode(question))

    async def _task(self, question: Question) -> Task | None:
        if question.id in self._unusable:
            return None
        try:
            features = await self._features[_media(question)]
            return Task(question, self._prompt(question), features)
        except DataError as error:
            self.report(question, str(error))
            return None


def _media(question: Question) -> tuple[str, ...]:
    """Questions about the same media share its features."""
    return ("video", question.video) if question.video else ("images", *question.images)


def _succeeded(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
