"""One function a format: a row as others publish it -> a Question. ValueError says what is wrong.

Facts about each format come from the files and programs named in its docstring.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from veripo_ray.questions import parts
from veripo_ray.records import Kind, Question

Converter = Callable[[Mapping[str, Any], str], Question]

_VIDEO_R1_KINDS = {
    "multiple choice": Kind.CHOICE,
    "numerical": Kind.NUMERIC,
    "regression": Kind.NUMERIC,
}
_LETTER_REQUEST = "Answer with the option's letter from the given choices directly."
_CHAT_KEYS = ("message", "messages", "prompt", "input")
_ANSWER_KEYS = ("answer", "label")


def veripo(row: Mapping[str, Any], fallback_id: str) -> Question:  # noqa: ARG001
    """Our own: the fields of records.Question."""
    return Question.model_validate(row)


def video_r1(row: Mapping[str, Any], fallback_id: str) -> Question:
    """Video-R1-260k.json and Video-R1-COT-165k.json (data card of Video-R1/Video-R1-data, and
    tulerfeng/Video-R1, src/r1-v/src/open_r1/grpo.py).

    problem, problem_type, options ["A. red", ...], solution "<answer>A</answer>", data_type
    ("video" or "image"), path, data_source; the COT file adds process, "<think>...</think>".
    Free-form and OCR answers are scored there by ROUGE and word errors, not by a rule we have.
    """
    problem_type, solution = parts.text_of(row, "problem_type"), parts.text_of(row, "solution")
    kind = _VIDEO_R1_KINDS.get(problem_type)
    if kind is None:
        raise ValueError(f"problem_type {problem_type!r} has no rule to score it by")
    choices = parts.options(row.get("options")) if kind is Kind.CHOICE else ()
    media = _video_r1_media(row)
    thinking = row.get("process")
    return Question(
        id=str(row.get("problem_id", fallback_id)),
        text=parts.without_placeholders(parts.text_of(row, "problem")),
        kind=kind,
        gold=parts.gold(kind, parts.answer_text(solution), choices),
        options=choices,
        source=str(row.get("data_source", "")),
        demonstration=f"{thinking}\n{solution}" if thinking else None,
        **media,
    )


def _video_r1_media(row: Mapping[str, Any]) -> dict[str, Any]:
    where = row.get("data_type")
    if where not in ("video", "image"):
        raise ValueError(f"data_type is {where!r}, neither 'video' nor 'image'")
    path = parts.path_of(row.get("path"))
    return {"video": path} if where == "video" else {"images": (path,)}


def veripo_paper(row: Mapping[str, Any], fallback_id: str) -> Question:
    """The evaluation files of HITsz-TMG/VerIPO, evaluation/json/*.json.

    question_id, video_path, question, answer, and processed_question, which has the options at
    its end. An answer of letters is a choice, any other a number (evaluation_vllm.py).
    """
    if row.get("image"):
        raise ValueError("it has an image inside the file (base64), which is not supported")
    answer = parts.answer_text(parts.first_of(row, "answer"))
    text, video = parts.text_of(row, "processed_question", "question"), row.get("video_path")
    text, choices = parts.split_options(text.replace(_LETTER_REQUEST, ""))
    kind = Kind.CHOICE if answer.isalpha() else Kind.NUMERIC
    return Question(
        id=str(row.get("question_id", fallback_id)),
        text=text,
        kind=kind,
        gold=parts.gold(kind, answer, choices),
        options=choices,
        video=parts.path_of(video),
        source=str(video).split("/")[0],
    )


def openrlhf(row: Mapping[str, Any], fallback_id: str) -> Question:
    """Rows of OpenRLHF and of MM-EUREKA (README of ModalMinds/MM-EUREKA, "Custom dataset";
    openrlhf/datasets/prompts_dataset.py): a chat under message(s), prompt or input, as a list, as
    JSON in a text, or as bare text; the answer under answer or label.

    Media stand in the chat's content ({"type": "video", "video": "file:///..."}) or beside it
    (image(s), video(s)). Only user turns are read: a system turn asks for a format, and here the
    prompt template does. A letter is a choice; all else is compared as LaTeX by math_verify, as
    MM-EUREKA does, unless the row has a "kind" of ours.
    """
    texts: list[str] = []
    media: dict[str, list] = {
        name: parts.listed(row.get(name)) + parts.listed(row.get(f"{name}s"))
        for name in ("image", "video")
    }
    for item in _user_content(parts.first_of(row, *_CHAT_KEYS)):
        for name in media:
            media[name] += parts.listed(item.get(name))
        if "text" in item:
            texts.append(parts.text_of(item, "text"))
    text, choices = parts.split_options(parts.without_placeholders("\n".join(texts)))
    answer = parts.answer_text(parts.first_of(row, *_ANSWER_KEYS))
    kind = Kind(row["kind"]) if "kind" in row else _kind_of(answer, choices)
    return Question(
        id=str(row.get("id", fallback_id)),
        text=text,
        kind=kind,
        gold=parts.gold(kind, answer, choices),
        options=choices if kind is Kind.CHOICE else (),
        video=parts.one_video(map(parts.path_of, media["video"])),
        images=tuple(map(parts.path_of, media["image"])),
        source=str(row.get("datasource", "")),
    )


def _kind_of(answer: str, choices: tuple[str, ...]) -> Kind:
    try:
        parts.choice_gold(answer, choices)
    except ValueError:
        return Kind.MATH
    return Kind.CHOICE


def _user_content(chat: Any) -> Iterator[Mapping[str, Any]]:
    """Every item of the user's turns, a bare text as {"text": ...}."""
    if isinstance(chat, str) and chat.lstrip().startswith("[{"):
        chat = json.loads(chat)
    for turn in chat if isinstance(chat, list) else [{"role": "user", "content": chat}]:
        role = turn.get("role") if isinstance(turn, Mapping) else None
        if role not in ("system", "user"):
            raise ValueError(f"its chat has a turn of {role!r}; only a user's question is read")
        for item in parts.listed(turn.get("content")) if role == "user" else ():
            yield item if isinstance(item, Mapping) else {"text": item}


CONVERTERS: dict[str, Converter] = {
    "veripo": veripo,
    "video_r1": video_r1,
    "veripo_paper": veripo_paper,
    "openrlhf": openrlhf,
}


def formats_of(row: Mapping[str, Any]) -> set[str]:
    """Which formats a row may be of, by the fields that each cannot do without."""
    has = row.keys()
    tests = {
        "veripo": {"text", "kind", "gold"} <= has,
        "video_r1": {"problem", "problem_type", "solution"} <= has,
        "veripo_paper": {"video_path", "answer"} <= has
        and not has.isdisjoint({"question", "processed_question"}),
        "openrlhf": not has.isdisjoint(_CHAT_KEYS) and not has.isdisjoint(_ANSWER_KEYS),
    }
    return {name for name, fits in tests.items() if fits}
