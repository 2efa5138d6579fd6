"""What each route with a body does: read it, count its items in, work within time, reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from deployments import docs, openrlhf, pairing, scores
from deployments.admission import ticket_of
from deployments.judging import Judging
from deployments.reading import Reader, as_model, wants_stream
from deployments.refusal import Refusal
from deployments.settings import Args
from deployments.streaming import Lines
from veripo_ray.verifier import tokens, wire
from veripo_ray.verifier.bodies import NDJSON
from veripo_ray.verifier.judges import Judge
from veripo_ray.verifier.shapes import (
    PairsReply,
    PairsRequest,
    QuestionPairs,
    RewardReply,
    RewardRequest,
    ScoreReply,
    ScoreRequest,
    VerifyReply,
    VerifyRequest,
)
from veripo_ray.verifier.verify import Item

T = TypeVar("T")
AskedJudge = Annotated[
    str | None, Query(description="`heldout` asks the held-out judge", examples=["heldout"])
]


class Routes:
    """The four routes, on the parts of one replica."""

    def __init__(self, args: Args, reader: Reader, judging: Judging) -> None:
        self._args, self._reader, self._judging = args, reader, judging
        self._scorer = scores.Scorer(judging, args.rewards)
        self._encode = tokens.encoder(args.tokenizer)

    def add_to(self, router: APIRouter) -> None:
        router.post(
            "/v1/verify",
            response_model=VerifyReply,
            **docs.takes(VerifyRequest, docs.VERIFY, streams=True),
        )(self.verify)
        router.post("/v1/pairs", response_model=PairsReply, **docs.takes(PairsRequest, docs.PAIRS))(
            self.pairs
        )
        router.post("/v1/score", response_model=ScoreReply, **docs.takes(ScoreRequest, docs.SCORE))(
            self.score
        )
        router.post(
            "/get_reward",
            response_model=RewardReply,
            **docs.takes(RewardRequest, docs.REWARD, 422, 503),
        )(self.get_reward)

    async def verify(self, request: Request, judge: AskedJudge = None) -> Response:
        """A verdict an item, in order; as JSON lines as they finish for application/x-ndjson."""
        return await self._in_time(self._verify(request, self._judging.named(judge)))

    async def pairs(self, request: Request) -> Response:
        """Preference pairs of questions with several responses each."""
        return await self._in_time(self._pairs(request))

    async def score(self, request: Request) -> Response:
        """One number a response, in the shape of vLLM's Score API; null where undecided."""
        return await self._in_time(self._score(request))

    async def get_reward(self, request: Request) -> Response:
        """Rewards for OpenRLHF's remote reward client (`--reward.remote_url`)."""
        return await self._in_time(self._reward(request))

    async def _verify(self, request: Request, judge: Judge) -> Response:
        lines = Lines(self._judging, ticket_of(request), self._args.timeout_s)
        items = await self._reader.read(request, self._read_items)
        ticket_of(request).take(len(items))
        if wants_stream(request):
            return StreamingResponse(lines.of(items, judge), media_type=NDJSON)
        verdicts = await self._judging.verdicts(items, judge)
        ticket_of(request).errors = sum(verdict.error is not None for verdict in verdicts)
        reply = VerifyReply.model_construct(verdicts=tuple(verdicts))
        return await self._reader.reply(request, reply)

    async def _pairs(self, request: Request) -> Response:
        asked = await self._reader.read(request, self._read_pairs)
        ticket_of(request).take(asked.responses)
        judged = iter(await self._judging.verdicts(asked.unjudged, self._judging.curating))
        builder = pairing.Pairing(self._args, self._encode, asked.seed)
        results: list[QuestionPairs] = []
        for question in asked.questions:
            if isinstance(question, QuestionPairs):  # not valid, with its error
                results.append(question)
                continue
            verdicts = question.verdicts or [next(judged) for _ in question.responses]
            results.append(await asyncio.to_thread(builder.pairs, question, verdicts))
        ticket_of(request).errors = sum(result.error is not None for result in results)
        return await self._reader.reply(request, PairsReply(questions=tuple(results)))

    async def _score(self, request: Request) -> Response:
        asked = await self._reader.read(request, as_model(ScoreRequest, self._max_values))
        rows = scores.paired(asked, self._args.max_items)
        ticket_of(request).take(len(rows))
        items = [self._scorer.item(label, text) for label, text in rows]
        reply = await self._scorer.reply(items)
        ticket_of(request).errors = sum(score.error is not None for score in reply.data)
        return await self._reader.reply(request, reply)

    async def _reward(self, request: Request) -> Response:
        asked = await self._reader.read(request, as_model(RewardRequest, self._max_values))
        wire.check_count(len(asked.query), self._args.max_items)
        ticket_of(request).take(len(asked.query))
        return await self._reader.reply(request, await openrlhf.rewards(self._scorer, asked))

    def _read_items(self, body: bytes, media_type: str) -> list[Item | str]:
        return wire.read_items(body, media_type, self._args.max_items)

    def _read_pairs(self, body: bytes, media_type: str) -> pairing.Asked:
        return pairing.read(body, media_type, self._args.max_items)

    @property
    def _max_values(self) -> int:
        return (self._args.max_items + 1) * wire.VALUES_PER_ITEM

    async def _in_time(self, work: Awaitable[T]) -> T:
        """The result of `work`, which is cancelled when time is up."""
        try:
            async with asyncio.timeout(self._args.timeout_s):
                return await work
        except TimeoutError:
            raise Refusal(
                504,
                f"not done within {self._args.timeout_s:g} s",
                "send fewer items in a request, or raise timeout_s",
            ) from None
