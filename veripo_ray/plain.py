"""Records as the plain maps that they travel as: checked as strictly, without an object for each.

For who passes them on. Where thousands of small records are read, making the objects costs more
than checking what is in them.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict

from veripo_ray.records import Record


def checker(kind: type[Record]) -> TypeAdapter[dict[str, Any]]:
    """Whose `validate_python` takes what `kind.model_dump` gives, every field of it there, and
    raises ValidationError for anything else."""
    return TypeAdapter(_shape(kind))


def _shape(kind: type[Record]) -> Any:
    fields: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        plain = _plain(field.annotation)
        fields[name] = Annotated[(plain, *field.metadata)] if field.metadata else plain
    shape = TypedDict(kind.__name__, fields)  # type: ignore[misc]
    return with_config(kind.model_config)(shape)


def _plain(annotation: Any) -> Any:
    """Of records, which may lie in a tuple, their shapes; everything else as it is."""
    if get_origin(annotation) is tuple:
        item, *rest = get_args(annotation)
        return tuple[(_plain(item), *rest)]  # type: ignore[misc]
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return _shape(annotation)
    return annotation
