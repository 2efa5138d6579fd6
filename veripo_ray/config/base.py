"""What every section of the settings is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
DType = Literal["float32", "bfloat16"]


class Settings(BaseModel):
    """A closed, immutable section: an unknown setting is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
