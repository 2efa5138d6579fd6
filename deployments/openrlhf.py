"""Rewards for OpenRLHF's remote reward client, as its version 0.11 sends and reads them.

The client sends `query` (prompt and response, decoded with special tokens), `prompts` and `labels`,
and reads `rewards`, `scores` and `extra_logs`, a list each. It has no way to say that a response
has no reward, so that one without refuses the request: 422, or 503 where it may pass by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from deployments.refusal import Refusal
from deployments.scores import Scored, Scorer
from veripo_ray.records import CheckName, Verdict
from veripo_ray.verifier.shapes import AnyLabel, RewardReply, RewardRequest
from veripo_ray.verifier.verify import Item

_TAIL = 200  # characters of the prompt's end that are looked for
_AFTER_MEDIA = "<|vision_end|>"  # between it and its beginning the tokens of media were put


async def rewards(scorer: Scorer, request: RewardRequest) -> RewardReply:
    """Raises Refusal when a query has no reward."""
    rows = zip(request.query, request.prompts, request.labels, strict=True)
    scored = await scorer.scored([_item(scorer, *row) for row in rows])
    _refuse_gaps(scored)
    verdicts = [one.verdict for one in scored]
    return RewardReply(
        rewards=tuple(one.score for one in scored if one.score is not None),
        scores=_values(verdicts, "accuracy"),
        extra_logs=_logs(verdicts) | (_judged(verdicts) if scorer.asks_judge else {}),
    )


def _item(scorer: Scorer, query: str, prompt: str, label: AnyLabel) -> Item | str:
    response = response_of(query, prompt)
    if response is None:
        return "the end of the prompt is not found in the query, so the response is not known"
    return scorer.item(label, response)


def response_of(query: str, prompt: str) -> str | None:
    """What stands behind the prompt in the query.

    A prompt may come back otherwise than it went: with tokens put in for its media, or cut at its
    beginning. Then its end is looked for, at its place in the prompt: what a policy writes itself
    cannot be taken for it.
    """
    if query.startswith(prompt):
        return query[len(prompt) :]
    tail = prompt.rpartition(_AFTER_MEDIA)[2][-_TAIL:]
    if not tail.strip():
        return None
    end = 0
    for _ in range(prompt.count(tail)):
        at = query.find(tail, end)
        if at < 0:
            return None
        end = at + len(tail)
    return query[end:]


def _refuse_gaps(scored: Sequence[Scored]) -> None:
    gaps = [(index, one) for index, one in enumerate(scored) if one.score is None]
    if not gaps:
        return
    index, first = gaps[0]
    passing = all(one.passing for _, one in gaps)
    raise Refusal(
        503 if passing else 422,
        f"{len(gaps)} of {len(scored)} queries have no reward; query {index}: {first.error}",
        "look at the judge (GET /v1/info)" if passing else "correct the label or leave the row out",
        {"retry-after": "1"} if passing else None,
    )


def _logs(verdicts: Sequence[Verdict]) -> dict[str, tuple[float, ...]]:
    """What OpenRLHF averages and plots beside the reward."""
    return {
        "format": tuple(float(v["format"].passed is True) for v in verdicts),
        "think_tokens": _values(verdicts, "length"),
        "repetition": _values(verdicts, "repetition"),
    }


def _judged(verdicts: Sequence[Verdict]) -> dict[str, tuple[float, ...]]:
    """judged: the judge could decide, either way."""
    return {
        "inconsistent": tuple(float(v.consistent is False) for v in verdicts),
        "judged": tuple(float(v.consistent is not None) for v in verdicts),
    }


def _values(verdicts: Sequence[Verdict], name: CheckName) -> tuple[float, ...]:
    values = (verdict[name].value for verdict in verdicts)
    return tuple(value for value in values if value is not None)
