"""One number a response for trainers that know no verdicts, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError

from veripo_ray.errors import ConfigError, DataError, ScoringError
from veripo_ray.foreign import graded, id_of
from veripo_ray.messages import text_of
from veripo_ray.records import CheckName, Kind, Verdict
from veripo_ray.scoring.rewards import FORMAT_REWARD
from veripo_ray.verifier.sources import Source, Verdicts
from veripo_ray.verifier.verify import Item, undecided

Weight = Annotated[float, Field(ge=0)]


class RewardSettings(Source):
    """By default VerIPO's reward r_a + r_f, computed in the trainer's process."""

    kind: Kind | None = Field(None, description="of questions whose row names none")
    accuracy: Weight = Field(1.0, description="times r_a, in [0, 1]")
    format: Weight = Field(1.0, description="times r_f, 0 or 0.5")
    inconsistency_penalty: Weight = Field(
        0.0, description="less this where the judge finds a contradiction; 0: no judge is heard"
    )


def read(settings: Mapping[str, Any]) -> RewardSettings:
    """Raises ConfigError that lists every mistake."""
    try:
        return RewardSettings.model_validate(settings)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(
            f"the reward cannot be built: {'; '.join(wrong)}",
            fix=f"known settings: {', '.join(RewardSettings.model_fields)}",
        ) from None


@dataclass(frozen=True, slots=True)
class Scored:
    """reward is None where it could not be decided, and `error` says why."""

    reward: float | None
    verdict: Verdict
    error: str | None = None


class Rewards:
    """Scores responses to rows of a trainer's data set; see `foreign` for the names of fields."""

    def __init__(self, cfg: RewardSettings) -> None:
        heard = cfg.inconsistency_penalty > 0
        self._cfg = cfg
        # A judge whose word does not count costs nothing: the rules take no model to ask.
        self._verdicts = Verdicts(cfg if heard else cfg.model_copy(update={"judge": "rules"}))
        self._needed: tuple[CheckName, ...] = ("format", "accuracy")
        if heard:
            self._needed += ("consistency",)

    def __call__(self, rows: Sequence[Mapping[str, Any]], responses: Sequence[Any]) -> list[Scored]:
        """One a response, in order. A row that cannot be scored has an error, and spoils no other.

        Raises ResourceError when the verifier at `url` cannot be reached in time.
        """
        items = [self._item(row, said) for row, said in zip(rows, responses, strict=True)]
        valid = [item for item in items if isinstance(item, Item)]
        judged = iter(self._verdicts(valid) if valid else ())
        verdicts = [next(judged) if isinstance(i, Item) else undecided(i) for i in items]
        return [self._scored(verdict) for verdict in verdicts]

    def _item(self, row: Mapping[str, Any], said: Any) -> Item | str:
        try:
            kind, gold, options = graded(row, self._cfg.kind)
            return Item(
                question_id=id_of(row) or "",
                question=_question(row),
                kind=kind,
                gold=gold,
                options=options,
                response=text_of(said),
            )
        except (DataError, ScoringError) as error:
            return error.problem
        except ValueError as error:
            return f"the row cannot be used: {error}"

    def _scored(self, verdict: Verdict) -> Scored:
        for name in self._needed:
            if error := verdict[name].error:
                return Scored(None, verdict, f"{name}: {error}")
        r_f = FORMAT_REWARD if verdict["format"].passed else 0.0
        reward = self._cfg.accuracy * (verdict["accuracy"].value or 0.0) + self._cfg.format * r_f
        if verdict.consistent is False:
            reward -= self._cfg.inconsistency_penalty
        return Scored(reward, verdict)


def _question(row: Mapping[str, Any]) -> str:
    asked = row.get("question") or row.get("prompt")
    return text_of(asked) if asked else ""


def means(scored: Sequence[Scored]) -> dict[str, float]:
    """What is worth plotting beside the reward: the share without one, and means of the others."""
    if not scored:
        return {}
    verdicts = [one.verdict for one in scored if one.reward is not None]
    found = {"unscored": 1 - len(verdicts) / len(scored)}
    if verdicts:
        values: dict[str, list[float]] = {
            "accuracy": [verdict["accuracy"].value or 0.0 for verdict in verdicts],
            "format": [verdict["format"].passed is True for verdict in verdicts],
            "inconsistent": [verdict.consistent is False for verdict in verdicts],
            "repetitive": [verdict["repetition"].passed is False for verdict in verdicts],
        }
        found |= {name: sum(each) / len(each) for name, each in values.items()}
    return found
