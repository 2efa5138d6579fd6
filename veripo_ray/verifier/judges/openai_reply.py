"""What a chat completion says to a question of yes or no."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pydantic import BaseModel, Field, ValidationError

from veripo_ray.errors import DataError
from veripo_ray.verifier.judges.ask import Answered

# Below this share of its probability for the two words, their ratio is noise and no answer.
LEAST_MASS = 0.05
_AROUND = (
    " \t\r\n\"'`*.,:;!?\u2581\u0120\u010a"  # the last three stand for white space in raw tokens
)


class _Token(BaseModel):
    token: str
    logprob: float = Field(le=1e-3, description="at most 0 but for rounding; NaN is refused")


class _Position(BaseModel):
    top_logprobs: list[_Token]


class _LogProbs(BaseModel):
    content: list[_Position] = Field(min_length=1)


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    logprobs: _LogProbs | None = None


class _Reply(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


def read(body: bytes, *, logprobs: bool) -> Answered | str:
    """The answer in the body of a chat completion; a string where it is neither yes nor no.

    logprobs: by the probabilities of its first token, merged over spellings (" Yes", "YES"); a word
    that is not among those listed counts 0. Otherwise by the one word that was said.

    Raises DataError for what is no chat completion.
    """
    try:
        choice = _Reply.model_validate_json(body).choices[0]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"its reply is no chat completion: {where}: {first['msg']}",
            fix="check that judges.openai.url is an OpenAI-compatible server's",
        ) from error
    if not logprobs:
        return _from_word(choice.message.content or "")
    if choice.logprobs is None:
        raise DataError(
            "its reply has no log-probabilities", fix="set judges.openai.logprobs to false"
        )
    return _from_tokens(choice.logprobs.content[0].top_logprobs)


def _from_word(said: str) -> Answered | str:
    word = _bare(said)
    if word not in ("yes", "no"):
        return f"it says {said[:40]!r}, neither yes nor no"
    return Answered(word == "yes")


def _from_tokens(tokens: list[_Token]) -> Answered | str:
    yes, no = _mass(tokens, "yes"), _mass(tokens, "no")
    if yes + no < LEAST_MASS:
        best = max(tokens, key=lambda token: token.logprob, default=None)
        return (
            f"it gives yes and no a probability of {yes + no:.2g} together"
            + (f", and would rather say {best.token[:40]!r}" if best else "")
            + "; use a model that answers at once, its reasoning switched off"
        )
    return Answered.likely(yes / (yes + no))


def _mass(tokens: Iterable[_Token], word: str) -> float:
    return sum(math.exp(token.logprob) for token in tokens if _bare(token.token) == word)


def _bare(token: str) -> str:
    return token.strip(_AROUND).casefold()
