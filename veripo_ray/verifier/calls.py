"""Requests of the verifier's client and what their replies hold, without the network in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

import httpx
from pydantic import ValidationError

from veripo_ray import codec
from veripo_ray.errors import DataError
from veripo_ray.records import Record, Verdict
from veripo_ray.verifier import bodies, wire
from veripo_ray.verifier.bodies import MSGPACK, NDJSON
from veripo_ray.verifier.retrying import TryAgainError, checked
from veripo_ray.verifier.shapes import (
    AnyLabel,
    Info,
    PairsReply,
    PairsRequest,
    QuestionPairs,
    Rollouts,
    Score,
    ScoreReply,
    ScoreRequest,
    VerdictLine,
)
from veripo_ray.verifier.verify import Item

T = TypeVar("T")
R = TypeVar("R", bound=Record)
JudgeAsked = Literal["heldout"] | None


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request; `read` makes the result of its reply's body."""

    path: str
    read: Callable[[bytes], T]
    content: bytes | None = None

    def request(self, url: str) -> dict[str, Any]:
        """Arguments of httpx, but for the time."""
        return _request(url, self.path, self.content, MSGPACK)

    def result(self, url: str, reply: httpx.Response) -> T:
        """Raises TryAgainError for what may pass, DataError with the address for what will not."""
        with _named(url):
            return self.read(checked(reply).content)


class Stream:
    """The verdicts of some items, line by line; what is still missing can be asked for again."""

    def __init__(self, start: int, items: Sequence[Item], judge: JudgeAsked) -> None:
        self._path = _verify_path(judge)
        self._missing = dict(enumerate(items, start))
        self._asked: list[int] = []

    @property
    def unfinished(self) -> bool:
        return bool(self._missing)

    def request(self, url: str) -> dict[str, Any]:
        self._asked = list(self._missing)
        return _request(url, self._path, wire.write_items(self._missing.values()), NDJSON)

    def begin(self, url: str, reply: httpx.Response) -> None:
        """Look at the reply's status and type, before its lines. Raises as `Call.result` does."""
        with _named(url):
            kind = checked(reply).headers.get("content-type", "")
            if not kind.startswith(NDJSON):
                raise DataError(f"it answered with {kind!r} instead of {NDJSON}")

    def line(self, text: str) -> tuple[int, Verdict]:
        """Index and verdict of one line. Raises TryAgainError for what is left of a broken one."""
        try:
            line = VerdictLine.model_validate_json(text)
            index = self._asked[line.index]
            del self._missing[index]
        except (ValidationError, LookupError) as error:
            raise TryAgainError(f"a line of its reply cannot be used: {error}") from error
        return index, line.verdict

    def end(self) -> None:
        """After the last line. Raises TryAgainError when some are missing."""
        if self._missing:
            raise TryAgainError(f"its reply ended {len(self._missing)} verdicts early")


def verify(
    items: Sequence[Item],
    batch: int,
    judge: JudgeAsked,
    read: Callable[[bytes, int], list[T]],
) -> list[Call[list[T]]]:
    """read: `wire.read_verdicts` or `wire.read_plain_verdicts`."""
    return [
        Call(_verify_path(judge), _expecting(len(few), read), wire.write_items(few))
        for few in _batches(items, batch)
    ]


def streams(items: Sequence[Item], batch: int, judge: JudgeAsked) -> Iterator[Stream]:
    start = 0
    for few in _batches(items, batch):
        yield Stream(start, few, judge)
        start += len(few)


def pairs(questions: Sequence[Rollouts], seed: int) -> Call[list[QuestionPairs]]:
    request = PairsRequest(questions=tuple(questions), seed=seed)
    return Call("/v1/pairs", _reads_pairs, bodies.write(request, MSGPACK))


def score(text_1: AnyLabel | Sequence[AnyLabel], text_2: str | Sequence[str]) -> Call[list[Score]]:
    request = ScoreRequest.model_validate({"text_1": _tuple(text_1), "text_2": _tuple(text_2)})
    return Call("/v1/score", _reads_scores, bodies.write(request, MSGPACK))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _verify_path(judge: JudgeAsked) -> str:
    return f"/v1/verify?judge={judge}" if judge else "/v1/verify"


def _request(url: str, path: str, content: bytes | None, accept: str) -> dict[str, Any]:
    return {
        "method": "GET" if content is None else "POST",
        "url": url + path,
        "content": content,
        "headers": {"content-type": MSGPACK, "accept": accept},
    }


def _expecting(count: int, read: Callable[[bytes, int], list[T]]) -> Callable[[bytes], list[T]]:
    return lambda body: read(body, count)


def _reads_pairs(body: bytes) -> list[QuestionPairs]:
    return list(_read(PairsReply, body).questions)


def _reads_scores(body: bytes) -> list[Score]:
    return list(_read(ScoreReply, body).data)


def _reads_info(body: bytes) -> Info:
    return Info.model_validate_json(body)


def _read(kind: type[R], body: bytes) -> R:
    try:
        return kind.model_validate(codec.load_plain(body))
    except ValidationError as error:
        raise DataError(f"the reply is no {kind.__name__}: {bodies.first_problem(error)}") from None


INFO = Call("/v1/info", _reads_info)
HEALTH: Call[bytes] = Call("/healthz", bytes)


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Errors say which verifier it was."""
    try:
        yield
    except DataError as error:
        fix = error.fix or f"check that a verifier of this version listens at {url}"
        raise DataError(f"{url}: {error.problem}", fix=fix) from error


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while few := list(islice(iterator, size)):
        yield few
