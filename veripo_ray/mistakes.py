"""What is wrong in settings that pydantic has refused, in words: the setting, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

Models = Mapping[str, type[BaseModel]]


def explain(
    error: ValidationError, root: type[BaseModel], tags: Models | None = None
) -> Iterator[str]:
    """One line a mistake. root: what was validated; tags: the models of a union that pydantic tells
    apart by these names, which the user has not written."""
    tags = tags or {}
    for item in error.errors():
        loc = tuple(part for part in item["loc"] if part not in tags)
        where = ".".join(map(str, loc)) or "settings"
        if item["type"] == "extra_forbidden":
            known = _fields_at(item["loc"][:-1], root, tags)
            section, key = ".".join(map(str, loc[:-1])), str(loc[-1])
            yield f"{where}: unknown setting{suggestion(section, key, known)}"
        elif item["type"] == "value_error":
            prefix = f"{where}: " if loc else ""
            yield prefix + item["msg"].removeprefix("Value error, ")
        else:
            seen = "" if item["type"] == "missing" else f" (got {item['input']!r})"
            yield f"{where}: {item['msg']}{seen}"


def suggestion(section: str, key: str, known: Iterable[str]) -> str:
    """What may have been meant, or else what there is."""
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1)
    prefix = f"{section}." if section else ""
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return f"; known here: {', '.join(names)}"


def _fields_at(loc: tuple[int | str, ...], root: type[BaseModel], tags: Models) -> dict[str, Any]:
    """Names of the settings in the section at `loc`."""
    model: Any = root
    for part in loc:
        if part in tags:
            model = tags[str(part)]
        elif isinstance(part, str) and part in getattr(model, "model_fields", {}):
            kinds = [model.model_fields[part].annotation]
            kinds += get_args(kinds[0])
            model = next((k for k in kinds if hasattr(k, "model_fields")), model)
    return getattr(model, "model_fields", {})
