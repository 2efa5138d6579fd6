"""The rollouts of any trainer: a line with a question and all of its responses, or a line for each.

Fields: `prompt` (a text or chat messages) or `question` or both; `gold`; `kind`; `options`; and
`responses`, a list, or `response`. Other trainers' names for them are known. Lines of one question
are those with the same `question_id`, or, where there is none, with the same prompt and gold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from veripo_ray.errors import DataError, ScoringError
from veripo_ray.foreign import graded, id_of
from veripo_ray.messages import text_of
from veripo_ray.questions import parts
from veripo_ray.questions.left_out import LeftOut
from veripo_ray.questions.rows import Row
from veripo_ray.records import Kind, Question
from veripo_ray.runlog import BadItem

_MANY = ("responses", "completions", "rollouts")
_ONE = ("response", "completion", "output")


@dataclass(frozen=True, slots=True)
class Sampled:
    """A response, and whether it ended by itself."""

    text: str
    finish_reason: Literal["stop", "length"] = "stop"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, the prompt as the trainer keeps it, and what was sampled for it."""

    question: Question
    prompt: Any
    responses: list[Sampled] = field(default_factory=list)


def read(rows: Iterable[Row], kind: Kind | None, bad: LeftOut) -> list[Asked]:
    """Questions in the order of their first lines. A line that cannot be read goes to `bad`."""
    asked: dict[str, Asked] = {}
    for place, row in rows:
        try:
            _take(row, kind, asked)
        except (DataError, ScoringError) as error:
            bad.add(BadItem(name=place, reason=error.problem))
        except ValueError as error:
            bad.add(BadItem(name=place, reason=" ".join(str(error).split())))
    return list(asked.values())


def _take(row: Mapping[str, Any] | str, kind: Kind | None, asked: dict[str, Asked]) -> None:
    if isinstance(row, str):
        raise ValueError(row)
    new, responses = _asked(row, kind), _responses(row)
    known = asked.setdefault(new.question.id, new)
    if (known.question, known.prompt) != (new.question, new.prompt):
        raise ValueError(f"it is at odds with an earlier line of question {new.question.id}")
    known.responses.extend(responses)


def _asked(row: Mapping[str, Any], default: Kind | None) -> Asked:
    prompt = parts.first_of(row, "prompt", "question")
    text = text_of(row.get("question") or prompt)
    if not text.strip():
        raise ValueError("its question is empty")
    kind, gold, options = graded(row, default)
    id = id_of(row) or _digest(prompt, gold)
    return Asked(Question(id=id, text=text, kind=kind, gold=gold, options=options), prompt)


def _responses(row: Mapping[str, Any]) -> list[Sampled]:
    several = [row[name] for name in _MANY if row.get(name) is not None]
    if several:
        if not isinstance(several[0], list) or not several[0]:
            raise ValueError(f"its responses are {several[0]!r:.40}, not a list of some")
        return [_sampled(one) for one in several[0]]
    response = parts.first_of(row, *_ONE, _MANY[0])
    return [_sampled({"text": response, "finish_reason": row.get("finish_reason")})]


def _sampled(one: Any) -> Sampled:
    if not isinstance(one, Mapping):
        return Sampled(text_of(one))
    text, reason = text_of(parts.first_of(one, "text", *_ONE)), one.get("finish_reason")
    if reason not in (None, "stop", "length"):
        raise ValueError(f"a finish_reason is {reason!r:.40}, neither stop nor length")
    return Sampled(text, "length" if reason == "length" else "stop")


def _digest(prompt: Any, gold: str) -> str:
    content = json.dumps([prompt, gold], sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]
