from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.errors import ConfigError
from veripo_ray.prompts import names, render
from veripo_ray.records import Kind, Question


def question(kind: Kind = Kind.CHOICE, options=("red", "green"), text="Which colour?") -> Question:
    gold = {Kind.CHOICE: "A", Kind.NUMERIC: "3", Kind.MATH: r"\frac{1}{2}"}[kind]
    return Question(id="q", text=text, kind=kind, gold=gold, options=options)


def test_the_standard_template_asks_for_thinking_and_a_latex_answer_in_tags():
    text = render(question(), "veripo")
    assert "<think> </think>" in text
    assert "<answer> $B$ </answer>" in text
    assert text.endswith("Question: Which colour?\nA. red\nB. green")


def test_a_question_for_a_number_is_asked_for_a_number():
    text = render(question(Kind.NUMERIC, ()), "veripo")
    assert "<answer> $3$ </answer>" in text
    assert "single number" in text
    assert "{" not in text
    assert "\n\n" not in text
    assert render(question(Kind.NUMERIC, ()), "plain") == "Which colour?"


def test_a_formula_is_asked_for_as_a_formula():
    assert "single number" not in render(question(Kind.MATH, ()), "veripo")


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("kind", list(Kind))
def test_every_template_shows_the_question_and_its_options(name, kind):
    asked = question(kind, ("red", "green") if kind is Kind.CHOICE else ())
    text = render(asked, name)
    assert asked.text in text
    assert all(option in text for option in asked.options)
    assert "{question}" not in text
    assert "{options" not in text


def test_a_users_own_file_is_a_template_with_its_own_numeric_variant(tmp_path):
    (tmp_path / "mine.txt").write_text("{question} ? {options_inline}\n")
    (tmp_path / "mine_numeric.txt").write_text("how many: {question}")
    path = str(tmp_path / "mine.txt")
    assert render(question(), path) == "Which colour? ? A red B green"
    assert render(question(Kind.MATH, ()), path) == "Which colour? ?"
    assert render(question(Kind.NUMERIC, ()), path) == "how many: Which colour?"


@given(st.text(min_size=1))
def test_the_questions_own_braces_are_left_alone(text):
    text = "{options} {question} \\frac{a}{b} " + text.replace("\r", "")
    assert render(question(text=text), "plain").startswith("{options} {question} \\frac{a}{b}")


def test_an_unknown_template_names_those_there_are():
    with pytest.raises(ConfigError, match=r"prompt\.template 'veirpo'") as error:
        render(question(), "veirpo")
    assert "plain" in error.value.fix
    assert "veripo" in error.value.fix
    assert "numeric" not in error.value.fix


@pytest.mark.parametrize("content", ["{questoin}", "{question}"])
def test_a_template_that_would_lose_something_is_refused(tmp_path, content):
    path = tmp_path / "bad.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"prompt\.template"):
        render(question(), str(path))
