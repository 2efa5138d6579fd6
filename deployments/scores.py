"""One number a response, in the shape of vLLM's Score API.

The number is VerIPO's reward r_a + r_f (section 3.1), less `rewards.inconsistency_penalty` where
the judge finds that the thinking contradicts the answer. Without a penalty no judge is asked. What
could not be decided has no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from deployments.judging import Judging
from deployments.refusal import Refusal
from deployments.settings import Rewards
from veripo_ray.errors import DataError
from veripo_ray.records import CheckName, Verdict
from veripo_ray.scoring.rewards import FORMAT_REWARD
from veripo_ray.verifier import bodies, wire
from veripo_ray.verifier.judges import Case, Judge, Judgement
from veripo_ray.verifier.shapes import AnyLabel, Label, Score, ScoreReply, ScoreRequest
from veripo_ray.verifier.verify import Item

MODEL = "veripo-verifier"


@dataclass(frozen=True, slots=True)
class Scored:
    """A response's number; error: why there is none. passing: whether it may be there next time."""

    verdict: Verdict
    score: float | None
    error: str | None = None
    passing: bool = False


class Unasked:
    """The judge of scores that depend on none."""

    name = "none"

    async def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        return [Judgement(None, "no judge was asked") for _ in cases]


class Scorer:
    """Scores by `cfg`. asks_judge: whether they depend on the judge."""

    def __init__(self, judging: Judging, cfg: Rewards) -> None:
        self._judging, self._cfg = judging, cfg
        self.asks_judge = cfg.inconsistency_penalty > 0
        self._judge: Judge = judging.curating if self.asks_judge else Unasked()

    def item(self, label: AnyLabel, response: str) -> Item | str:
        """The response with what it is scored against, or what keeps it from being scored."""
        try:
            read = _label(label)
            kind = read.kind or self._cfg.label_kind
            if kind is None:
                return f"the label {read.gold[:80]!r} does not say its kind of question; {_KIND}"
            fields = read.model_dump(exclude={"kind"})
            return Item(kind=kind, response=response, **fields)
        except ValidationError as error:
            return f"the label is not valid: {bodies.first_problem(error)}"
        except DataError as error:
            return f"the label is not valid: {error.problem}"

    async def scored(self, items: Sequence[Item | str]) -> list[Scored]:
        verdicts = await self._judging.verdicts(items, self._judge)
        return [self._scored(verdict) for verdict in verdicts]

    async def reply(self, items: Sequence[Item | str]) -> ScoreReply:
        scored = await self.scored(items)
        data = [Score(index=i, score=s.score, error=s.error) for i, s in enumerate(scored)]
        return ScoreReply(model=MODEL, data=tuple(data))

    def _scored(self, verdict: Verdict) -> Scored:
        needed: list[CheckName] = ["format", "accuracy"]
        if self.asks_judge:
            needed.append("consistency")
        for name in needed:
            if error := verdict[name].error:
                return Scored(verdict, None, f"{name}: {error}", passing=name == "consistency")
        r_f = FORMAT_REWARD if verdict["format"].passed else 0.0
        penalty = self._cfg.inconsistency_penalty if verdict.consistent is False else 0.0
        return Scored(verdict, (verdict["accuracy"].value or 0.0) + r_f - penalty)


_KIND = 'send {"gold": ..., "kind": ...}, or start the verifier with rewards.label_kind'


def _label(label: AnyLabel) -> Label:
    """A text that is a JSON object is a `Label`, any other is the gold answer."""
    if isinstance(label, Label):
        return label
    text = str(label)
    if isinstance(label, str) and text.lstrip().startswith("{"):
        try:
            value = bodies.parse(text.encode(), bodies.JSON, wire.VALUES_PER_ITEM)
        except bodies.TooLargeError:
            raise
        except DataError:  # such as the set {1, 2} in LaTeX
            return Label(gold=text)
        return Label.model_validate(value)
    return Label(gold=text)


def paired(request: ScoreRequest, max_items: int) -> list[tuple[AnyLabel, str]]:
    """What is scored against what, as vLLM pairs them. Raises Refusal for lists that do not fit,
    TooLargeError for too many."""
    golds = request.text_1 if isinstance(request.text_1, tuple) else (request.text_1,)
    texts = request.text_2 if isinstance(request.text_2, tuple) else (request.text_2,)
    wire.check_count(max(len(golds), len(texts)), max_items)
    if len(golds) == 1:
        golds = golds * len(texts)
    if len(golds) != len(texts):
        raise Refusal(
            400,
            f"{len(golds)} entries of text_1 cannot be paired with {len(texts)} of text_2",
            "send one text_1 for all of text_2, or as many",
        )
    return list(zip(golds, texts, strict=True))
