"""Questions become work: prompt and features for each, unusable ones named and left out."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.encoding import Encoded
from veripo_ray.errors import DataError
from veripo_ray.questions import LeftOut
from veripo_ray.records import Question
from veripo_ray.runlog import BadItem

LIVE_REFERENCES = 4096  # each costs the coordinator about two kilobytes, however small its features
Media = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """A question ready to be asked: prompt ids [p] with one placeholder an item of media, and a
    reference to its features in the object store."""

    question: Question
    prompt_ids: np.ndarray
    features: Any


class Feed:
    """Has clips encoded ahead of their use, once for all who want them, and keeps references to
    the most recently used features, never the data.

    Features live in the object store while a `Task` or the feed refers to them. The feed lets go of
    the longest unused when they are more than `live_bytes` or LIVE_REFERENCES; asked for again,
    they come from the encoder's disk cache.
    """

    def __init__(
        self,
        encode: Callable[[Question], Awaitable[Encoded]],
        prompts: Callable[[Sequence[Question]], Sequence[np.ndarray]],
        *,
        max_bad_share: float,
        total: int,
        live_bytes: float,
        left_out: LeftOut | None = None,
    ) -> None:
        """total: all rows there were; left_out: those of them that could not be read, which count
        against the share as bad media do. Raises DataError as `report` does."""
        self._encode, self._prompts = encode, prompts
        self._max_bad, self._total, self._max_bytes = max_bad_share, total, live_bytes
        self._live: OrderedDict[Media, asyncio.Task[Encoded]] = OrderedDict()
        self._bytes = 0  # of the features that `_live` refers to
        self._ahead: set[Media] = set()  # will be asked for next: not let go before
        self._clips: set[int] = set()  # hashes of the clips that could be used
        self._unusable: set[str] = set()  # ids, at most the set share of all questions
        self.left_out = LeftOut() if left_out is None else left_out.model_copy(deep=True)
        self._check_share()

    @property
    def videos(self) -> int:
        """Distinct clips that could be used."""
        return len(self._clips)

    @property
    def live(self) -> int:
        """Clips and sets of images whose features the feed keeps in the object store."""
        return len(self._live)

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
        encoded = [(question, await self._features(question)) for question in questions]
        usable = [(question, features) for question, features in encoded if features is not None]
        prompts = self._prompts([question for question, _ in usable])
        made = zip(usable, prompts, strict=True)
        return [Task(question, ids, features) for (question, features), ids in made]

    def prefetch(self, questions: Sequence[Question]) -> None:
        """Begin to encode the clips that have not been. As many as there is room for: they stay
        until they were asked for, or until the next call."""
        self._ahead = {_media(question) for question in questions}
        for question in questions:
            self._begin(question)
        self._let_go()

    async def features(self, question: Question) -> Any:
        """A reference to the features of a question that was usable. DataError when it no longer
        is: its file has gone."""
        _, reference = await self._begin(question)
        return reference

    async def _features(self, question: Question) -> Any:
        """None, and a report, when the question is not usable."""
        if question.id in self._unusable:
            return None
        try:
            return await self.features(question)
        except DataError as error:
            self.report(question, str(error))
            return None

    def _begin(self, question: Question) -> asyncio.Task[Encoded]:
        """The encoding of the question's media, in progress or done; one for all who ask."""
        media = _media(question)
        if media not in self._live:
            self._live[media] = asyncio.ensure_future(self._encode(question))
            self._live[media].add_done_callback(lambda task: self._done(media, task))
        self._live.move_to_end(media)
        return self._live[media]

    def _done(self, media: Media, encoding: asyncio.Task[Encoded]) -> None:
        if not _succeeded(encoding):
            return
        self._bytes += encoding.result()[0]
        if media[0] == "video":
            self._clips.add(hash(media))
        self._let_go()

    def _let_go(self) -> None:
        """Drop references, the longest unused first, until the others are within bounds."""
        if self._fits():
            return
        for media, encoding in list(self._live.items()):
            if self._fits():
                return
            if encoding.done() and media not in self._ahead:
                del self._live[media]
                self._bytes -= encoding.result()[0] if _succeeded(encoding) else 0

    def _fits(self) -> bool:
        return self._bytes <= self._max_bytes and len(self._live) <= LIVE_REFERENCES


def _media(question: Question) -> Media:
    """Questions about the same media share its features."""
    return ("video", question.video) if question.video else ("images", *question.images)


def _succeeded(encoding: asyncio.Task[Encoded]) -> bool:
    return encoding.done() and not encoding.cancelled() and encoding.exception() is None
