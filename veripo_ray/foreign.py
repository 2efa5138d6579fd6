"""A question's gold answer out of a row that another trainer keeps, under the names it may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from veripo_ray.questions import parts
from veripo_ray.records import Kind
from veripo_ray.scoring.rewards import check_gold

IDS = ("question_id", "id", "prompt_id", "index")
GOLDS = ("gold", "ground_truth", "answer", "solution", "label")


def graded(row: Mapping[str, Any], default: Kind | None) -> tuple[Kind, str, tuple[str, ...]]:
    """Kind, gold answer and options of a row; `default` is the kind of one that names none.

    A gold answer may stand in its tags, in dollar signs or in a box. Raises ValueError for a row
    without these, DataError for a gold answer that nothing can be compared with.
    """
    options = parts.options(row.get("options"))
    kind = _kind(row, default)
    gold = parts.gold(kind, parts.answer_text(parts.first_of(row, *GOLDS)), options)
    check_gold(kind, gold, name=id_of(row) or "(no id)", options=len(options))
    return kind, gold, options


def id_of(row: Mapping[str, Any]) -> str | None:
    return next((str(row[name]) for name in IDS if row.get(name) not in (None, "")), None)


def _kind(row: Mapping[str, Any], default: Kind | None) -> Kind:
    named = row.get("kind") or default
    if named is None:
        raise ValueError("it names no kind; write one, or set kind=choice, numeric or math")
    if named not in list(Kind):
        raise ValueError(f"its kind is {named!r:.40}, not one of {', '.join(Kind)}")
    return Kind(named)
