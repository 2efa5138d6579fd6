"""Preference pairs of texts: `veripo_ray.pairs` behind the endpoint, for trainers of any kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from deployments.settings import Args
from veripo_ray.errors import DataError, VeripoError
from veripo_ray.pairs import build_pairs
from veripo_ray.records import Group, JudgedGroup, Pair, Question, Verdict
from veripo_ray.texts import group_of_texts
from veripo_ray.verifier import bodies, wire
from veripo_ray.verifier.shapes import PairsRequest, QuestionPairs, Rollouts, Sampled, TextPair
from veripo_ray.verifier.tokens import Encode
from veripo_ray.verifier.verify import Item

_VALUES_PER_RESPONSE = 400  # with its verdict, every check of which may point at eight places


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as read: a question that is not valid is the error that its result will carry."""

    questions: list[Rollouts | QuestionPairs]
    seed: int

    @property
    def unjudged(self) -> list[Item]:
        """The responses that came without verdicts, in order."""
        asked = [q for q in self.questions if isinstance(q, Rollouts) and q.verdicts is None]
        return [_item(question, r) for question in asked for r in question.responses]

    @property
    def responses(self) -> int:
        return sum(len(q.responses) for q in self.questions if isinstance(q, Rollouts))


def read(body: bytes, media_type: str, max_items: int) -> Asked:
    """Raises DataError for a body that is no request, TooLargeError for too many responses."""
    message = bodies.parse(body, media_type, (max_items + 1) * _VALUES_PER_RESPONSE)
    rows = message.pop("questions", None) if isinstance(message, dict) else None
    if not isinstance(rows, list):
        raise DataError("the request has no array questions", fix=_SHAPE)
    wire.check_count(len(rows), max_items)
    try:
        seed = PairsRequest.model_validate({"questions": (), **message}).seed
    except ValidationError as error:
        problem = f"the request is not valid: {bodies.first_problem(error)}"
        raise DataError(problem, fix=_SHAPE) from None
    asked = Asked([_question(row) for row in rows], seed)
    wire.check_count(asked.responses, max_items)
    return asked


_SHAPE = (
    'send {"questions": [{"question_id": ..., "question": ..., "kind": ..., "gold": ..., '
    '"responses": [...]}, ...], "seed": 0}'
)


def _question(row: Any) -> Rollouts | QuestionPairs:
    try:
        return Rollouts.model_validate(row)
    except ValidationError as error:
        named = row.get("question_id") if isinstance(row, dict) else None
        problem = f"the question is not valid: {bodies.first_problem(error)}"
        return QuestionPairs(question_id=bodies.clean(named or "(none)"), error=problem)


class Pairing:
    """Builds the pairs of one request, question by question, with one balance of families."""

    def __init__(self, args: Args, encode: Encode, seed: int) -> None:
        self._args, self._encode, self._seed = args, encode, seed
        self._families: Counter[str] = Counter()

    def pairs(self, asked: Rollouts, verdicts: Sequence[Verdict]) -> QuestionPairs:
        failed = [f"response {i}: {v.error}" for i, v in enumerate(verdicts) if v.error]
        if failed:
            return QuestionPairs(question_id=asked.question_id, error=failed[0])
        group = self._group(asked)
        judged = JudgedGroup(group_id=group.id, verdicts=tuple(verdicts))
        try:
            pairs = self._built(group, judged)
        except VeripoError as error:
            return QuestionPairs(question_id=asked.question_id, error=error.problem)
        return QuestionPairs(question_id=asked.question_id, pairs=tuple(map(_text_pair, pairs)))

    def _built(self, group: Group, judged: JudgedGroup) -> list[Pair]:
        return build_pairs(
            group,
            judged,
            self._args.pairs,
            encode=self._encode,
            seed=self._seed,
            family_counts=self._families,
            checks=self._args.checks,
        )

    def _group(self, asked: Rollouts) -> Group:
        responses = ((text_of(one), _reason(one)) for one in asked.responses)
        return group_of_texts(_question_of(asked), responses, self._encode)


def _question_of(asked: Rollouts) -> Question:
    return Question(
        id=asked.question_id,
        text=asked.question,
        kind=asked.kind,
        gold=asked.gold,
        options=asked.options,
    )


def _reason(response: str | Sampled) -> Literal["stop", "length"]:
    return response.finish_reason if isinstance(response, Sampled) else "stop"


def text_of(response: str | Sampled) -> str:
    return response.text if isinstance(response, Sampled) else response


def _item(asked: Rollouts, response: str | Sampled) -> Item:
    return Item.of(_question_of(asked), text_of(response))


def _text_pair(pair: Pair) -> TextPair:
    return TextPair(
        id=pair.id,
        family=pair.family,
        chosen=pair.chosen.text,
        rejected=pair.rejected.text,
        explanation=pair.explanation,
    )
