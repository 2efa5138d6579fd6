"""Questions on their way to the encoder: those that are asked together share a call.

A call of its own for every question cost the coordinator more than leading its whole group. So
questions wait here while the encoder has enough to do, and those that wait go on together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from actors.calls import result_of
from veripo_ray.errors import DataError
from veripo_ray.records import Question

CALL_QUESTIONS = 16
CALL_BYTES = 64 << 20  # of features: the encoder holds those of a call until the last is made
CALLS_A_THREAD = 2  # one at work, one that is there when it is done

Encoded = tuple[int, Any]  # bytes of features, a reference to them
_Call = asyncio.Task[Sequence[Encoded | DataError]]


class Encoding:
    """Calls the encoder for as many questions at a time as it can share out among its threads,
    one by one while nothing is known of the size of their features."""

    def __init__(self, encoder: Any, threads: int, limit_s: float) -> None:
        """threads: calls that the encoder works on at a time; limit_s: longest wait for a call."""
        self._encoder, self._limit_s = encoder, limit_s
        self._calls_at_once = CALLS_A_THREAD * threads
        self._waiting: deque[tuple[Question, asyncio.Future[tuple[_Call, int]]]] = deque()
        self._calls: set[_Call] = set()
        self._largest = 0  # bytes of a question's features so far

    async def of(self, question: Question) -> Encoded:
        """The bytes of the question's features, and a reference to them. DataError when its media
        cannot be used; what `result_of` raises when the encoder does not answer."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)  # after those that are asked in the same moment
        sent: asyncio.Future[tuple[_Call, int]] = loop.create_future()
        self._waiting.append((question, sent))
        call, place = await sent
        answer = (await asyncio.shield(call))[place]
        if isinstance(answer, DataError):
            raise answer
        return answer

    def _send(self) -> None:
        while self._waiting and len(self._calls) < self._calls_at_once:
            taken = [self._waiting.popleft() for _ in range(self._together())]
            few = [(question, sent) for question, sent in taken if not sent.cancelled()]
            if not few:
                continue
            work = self._encoded([question for question, _ in few])
            self._calls.add(call := asyncio.create_task(work))
            call.add_done_callback(self._done)
            for place, (_, sent) in enumerate(few):
                sent.set_result((call, place))

    def _together(self) -> int:
        """Questions of the next call: fewer towards the end, so that all threads end together."""
        share = len(self._waiting) // self._calls_at_once
        room = CALL_BYTES // self._largest if self._largest else 1
        return max(1, min(share, CALL_QUESTIONS, room))

    async def _encoded(self, questions: Sequence[Question]) -> Sequence[Encoded | DataError]:
        encode = self._encoder.encode.options(num_returns=1 + len(questions))
        receipts, *features = encode.remote(questions)
        names = ", ".join(repr(question.id) for question in questions)
        sizes = await result_of(receipts, self._limit_s, f"encoding the media of {names}")
        known = [size for size in sizes if not isinstance(size, DataError)]
        self._largest = max([self._largest, *known])
        pairs = zip(sizes, features, strict=True)
        return [size if isinstance(size, DataError) else (size, found) for size, found in pairs]

    def _done(self, call: _Call) -> None:
        self._calls.remove(call)
        self._send()
