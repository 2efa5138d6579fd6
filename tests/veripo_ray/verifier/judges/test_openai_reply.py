"""What a chat completion says: probabilities merged over spellings, anything else an error."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.errors import DataError
from veripo_ray.verifier.judges import Answered
from veripo_ray.verifier.judges.openai_reply import LEAST_MASS, read


def completion(top: dict[str, float], word: str | None = "yes") -> bytes:
    tokens = [{"token": t, "logprob": math.log(p) if p else -9999.0} for t, p in top.items()]
    logprobs = {"content": [{"token": "?", "logprob": 0, "top_logprobs": tokens}]}
    return json.dumps(
        {"choices": [{"message": {"content": word}, "logprobs": logprobs}], "usage": {}}
    ).encode()


@pytest.mark.parametrize(
    ("top", "probability"),
    [
        ({"yes": 0.9, "no": 0.1}, 0.9),
        ({"yes": 0.2, " Yes": 0.2, "YES": 0.2, "\u2581no": 0.1, "\u0120No": 0.1}, 0.75),
        ({"Yes.": 0.3, "**No": 0.3, "maybe": 0.4}, 0.5),
        ({"yes": 0.5, "the": 0.5}, 1.0),
        ({"NO": 0.1, "y": 0.9}, 0.0),
        ({"yes": 0.4, "no": 0.1, "yesterday": 0.2, "not": 0.2, "nothing": 0.1}, 0.8),
        ({"yes": 1.0, "no": 0.0}, 1.0),
    ],
)
def test_spellings_of_a_word_are_merged_and_no_other_word_counts(top, probability):
    answered = read(completion(top), logprobs=True)
    assert answered.probability == pytest.approx(probability)
    assert answered.yes is (probability >= 0.5)


@given(st.floats(LEAST_MASS / 2, 0.5), st.floats(LEAST_MASS / 2, 0.5))
def test_the_probability_is_of_yes_among_yes_and_no(yes, no):
    answered = read(completion({"yes": yes, "no": no, "x": 1 - yes - no}), logprobs=True)
    assert answered.probability == pytest.approx(yes / (yes + no))


@pytest.mark.parametrize("top", [{}, {"<think>": 0.999, "yes": 0.001}, {"maybe": 1.0}])
def test_an_answer_that_is_neither_is_told_and_never_guessed(top):
    said = read(completion(top), logprobs=True)
    assert "yes and no a probability of" in said
    assert all(repr(token) in said for token in list(top)[:1])


@pytest.mark.parametrize("word", ["yes", " Yes", "YES.", "no", "No\n"])
def test_one_word_is_read_without_probabilities(word):
    answered = read(completion({}, word), logprobs=False)
    assert answered == Answered(word.strip(" .\n").lower() == "yes")


@pytest.mark.parametrize("word", ["", "maybe", "yes and no", None, "y" * 1000])
def test_another_word_is_no_answer(word):
    assert "neither yes nor no" in read(completion({}, word), logprobs=False)


@pytest.mark.parametrize("logprob", [1.0, math.nan, math.inf, "x", None, True])
def test_impossible_probabilities_are_garbage(logprob):
    body = completion({"yes": 0.5}).replace(
        str(math.log(0.5)).encode(), json.dumps(logprob).encode()
    )
    with pytest.raises(DataError, match="logprob"):
        read(body, logprobs=True)


def test_a_server_that_gives_no_probabilities_is_told_what_to_do():
    body = b'{"choices": [{"message": {"content": "yes"}, "logprobs": null}]}'
    with pytest.raises(DataError, match="no log-probabilities") as error:
        read(body, logprobs=True)
    assert "judges.openai.logprobs to false" in error.value.fix


@given(st.binary(), st.booleans())
def test_any_bytes_are_an_answer_or_garbage(body, logprobs):
    with pytest.raises(DataError):
        read(body, logprobs=logprobs)
