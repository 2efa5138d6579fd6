"""One labelled chain of thought."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from veripo_ray.records import Kind, Record
from veripo_ray.scoring import answers
from veripo_ray.verifier.judges import Case

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


class Labelled(Record):
    """A response in its parts, and whether its answer follows from what its thinking concludes.

    Neither may be right: the label says nothing about that. `split` names the part of a file that
    a case belongs to, so that figures can be told apart by it.
    """

    id: str = Field(min_length=1, max_length=200)
    split: str = Field("", max_length=40)
    question: Text
    kind: Kind
    options: tuple[str, ...] = Field((), max_length=len(answers.LETTERS))
    thinking: Text
    answer: Text = Field(description="the text inside the answer tags")
    consistent: bool
    why: Text = Field(description="the reason for the label, in a sentence or two")

    @property
    def response(self) -> str:
        return f"<think>{self.thinking}</think><answer>{self.answer}</answer>"

    @property
    def case(self) -> Case:
        """What a judge is asked."""
        return Case(self.question, self.kind, self.options, self.thinking, self.answer)

    @model_validator(mode="after")
    def _is_a_response(self) -> Labelled:
        if problem := answers.split(self.response).problem:
            raise ValueError(f"thinking and answer make no response: {problem}")
        if self.kind is Kind.CHOICE and len(self.options) == 1:
            raise ValueError("a question of choice has two options or more, or does not list them")
        return self
