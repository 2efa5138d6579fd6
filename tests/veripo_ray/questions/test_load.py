from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veripo_ray.errors import DataError
from veripo_ray.questions import FORMATS, load_questions, write_questions
from veripo_ray.questions.formats import CONVERTERS
from veripo_ray.records import Kind, Question

VERIPO_ROW = {"id": "q", "text": "Which?", "kind": "choice", "gold": "A", "options": ["x", "y"]}
VIDEO_R1_ROW = {
    "problem_id": 7,
    "problem": "<video>\nWhat opens first?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. the door", "B. the window"],
    "solution": "<answer>B</answer>",
    "path": "./clips/a.mp4",
    "data_source": "rooms",
}
PAPER_ROW = {
    "question_id": "0001",
    "video_path": "set/a.mp4",
    "question": "Which way does it turn?",
    "answer": "A",
    "processed_question": "Which way does it turn?\nA. left\nB. right\n"
    "Answer with the option's letter from the given choices directly.",
}
CHAT = [
    {"role": "system", "content": "Answer in tags."},
    {
        "role": "user",
        "content": [
            {"type": "image", "image": "file://{root}/i.png"},
            {"type": "text", "text": "How many cats are in the image?"},
        ],
    },
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("clips/a.mp4", "set/a.mp4", "i.png", "b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"some bytes")
    return tmp_path


def write(path: Path, rows: list, *, array: bool = False) -> Path:
    lines = json.dumps(rows) if array else "\n".join(map(json.dumps, rows))
    path.write_text(lines.replace("{root}", str(path.parent)), encoding="utf-8")
    return path


def only(path: Path, **options) -> Question:
    good, bad = load_questions(path, **options)
    assert bad == []
    assert len(good) == 1
    return good[0]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: "<|" not in text
)
choices = st.builds(
    Question,
    id=texts,
    text=texts,
    kind=st.just(Kind.CHOICE),
    gold=st.sampled_from("AB"),
    options=st.lists(texts, min_size=2, max_size=10).map(tuple),
    source=texts,
    demonstration=st.none() | texts,
)
numbers = st.builds(
    Question, id=texts, text=texts, kind=st.just(Kind.NUMERIC), gold=st.integers(0, 9).map(str)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(choices | numbers, min_size=1, max_size=5, unique_by=lambda q: q.id))
def test_what_is_written_is_read_back(tmp_path, questions):
    path = tmp_path / "questions.jsonl"
    write_questions(path, questions)
    assert load_questions(path) == (questions, [])
    table = pa.Table.from_pylist([json.loads(q.model_dump_json()) for q in questions])
    pq.write_table(table, tmp_path / "questions.parquet")
    for name in ("auto", "parquet"):
        assert load_questions(tmp_path / "questions.parquet", name) == (questions, [])


def test_relative_media_start_at_the_files_folder_or_the_given_root(root):
    path = write(root / "q.jsonl", [VERIPO_ROW | {"video": "b.mp4", "images": ["i.png"]}])
    assert only(path).video == str(root / "b.mp4")
    assert only(path).images == (str(root / "i.png"),)
    elsewhere = root / "lists"
    elsewhere.mkdir()
    moved = path.rename(elsewhere / "q.jsonl")
    assert only(moved, video_root=root).video == str(root / "b.mp4")
    good, bad = load_questions(moved)
    assert good == []
    assert bad[0].reason == f"no such file: {elsewhere / 'b.mp4'}"


def test_video_r1_rows_are_read(root):
    question = only(write(root / "Video-R1.json", [VIDEO_R1_ROW], array=True))
    assert question == Question(
        id="7",
        text="What opens first?",
        kind=Kind.CHOICE,
        gold="B",
        options=("the door", "the window"),
        video=str(root / "clips/a.mp4"),
        source="rooms",
    )


def test_video_r1_numbers_images_and_demonstrations_are_read(root):
    changes = {
        "problem_type": "regression",
        "options": [],
        "solution": "<answer>1,234.5</answer>",
        "data_type": "image",
        "path": "./i.png",
        "process": "<think>I count.</think>",
    }
    question = only(write(root / "cot.jsonl", [VIDEO_R1_ROW | changes]))
    assert (question.kind, question.gold) == (Kind.NUMERIC, "1,234.5")
    assert (question.video, question.images) == (None, (str(root / "i.png"),))
    assert question.demonstration == "<think>I count.</think>\n<answer>1,234.5</answer>"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"problem_type": "OCR"}, "problem_type 'OCR' has no rule"),
        ({"problem_type": "free-form"}, "problem_type 'free-form' has no rule"),
        ({"data_type": "audio"}, "data_type is 'audio'"),
        ({"solution": "<answer>C</answer>"}, "the gold answer 'C'"),
        ({"solution": None}, "no field 'solution'"),
        ({"problem": 3}, "its problem is 3, not a text"),
        ({"path": None}, "media path is None"),
        ({"path": "clips/none.mp4"}, "no such file"),
        ({"options": ["A. one"], "solution": "A"}, "a single option"),
        ({"options": list("abcdefghijk")}, "11 options"),
        ({"problem": "what <|video_pad|> is"}, "media token"),
        ({"problem_type": "numerical"}, "'B' is not one number"),
    ],
)
def test_a_bad_row_is_reported_and_the_others_are_kept(root, change, reason):
    path = write(
        root / "r1.json", [VIDEO_R1_ROW, VIDEO_R1_ROW | {"problem_id": 8} | change], array=True
    )
    good, bad = load_questions(path)
    assert [question.id for question in good] == ["7"]
    assert (bad[0].where, bad[0].id) == (f"{path}[1]", "8")
    assert reason in bad[0].reason
    assert str(bad[0]) == f"{path}[1]: question 8: {bad[0].reason}"


def test_the_papers_evaluation_rows_are_read(root):
    number = {
        "question_id": "n",
        "processed_question": "How many?",
        "answer": "2.1",
        "options": None,
    }
    path = write(root / "vsi.json", [PAPER_ROW, PAPER_ROW | number], array=True)
    (choice, count), bad = load_questions(path)
    assert bad == []
    assert (choice.text, choice.options, choice.gold) == (
        PAPER_ROW["question"],
        ("left", "right"),
        "A",
    )
    assert (choice.video, choice.source) == (str(root / "set/a.mp4"), "set")
    assert (count.kind, count.gold, count.text) == (Kind.NUMERIC, "2.1", "How many?")


def test_an_image_inside_the_file_is_reported(root):
    path = write(root / "mmmu.json", [PAPER_ROW | {"image": "aGVsbG8="}], array=True)
    assert "base64" in load_questions(path)[1][0].reason


def test_an_id_used_for_another_question_is_made_unique_and_a_copy_is_reported(root):
    other = {"processed_question": "What is drawn?\nA. a\nB. b"}
    path = write(root / "tomato.json", [PAPER_ROW, PAPER_ROW | other, PAPER_ROW], array=True)
    good, bad = load_questions(path)
    assert [question.id for question in good] == ["0001", "0001#2"]
    assert [(item.where, item.reason) for item in bad] == [(f"{path}[2]", "its id was seen before")]


def test_in_our_own_format_an_id_is_used_once(tmp_path):
    path = write(tmp_path / "q.jsonl", [VERIPO_ROW, VERIPO_ROW | {"text": "Another?"}])
    good, bad = load_questions(path)
    assert len(good) == 1
    assert (bad[0].where, bad[0].id, bad[0].reason) == (f"{path}:2", "q", "its id was seen before")


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("key", ["message", "messages", "prompt", "input"])
def test_openrlhf_chats_are_read(root, key, as_text):
    row = {"id": "0", key: json.dumps(CHAT) if as_text else CHAT, "answer": r"$\frac{6}{2}$"}
    question = only(write(root / "mm.jsonl", [row]))
    assert question == Question(
        id="0",
        text="How many cats are in the image?",
        kind=Kind.MATH,
        gold=r"\frac{6}{2}",
        images=(str(root / "i.png"),),
    )


def test_openrlhf_plain_prompts_with_media_beside_them_are_read(root):
    rows = [
        {"prompt": "<video>Which?\nA. x\nB. y", "label": "B", "video": "b.mp4", "datasource": "d"},
        {"prompt": "How far?", "label": 3.5, "kind": "numeric", "images": ["i.png", "i.png"]},
    ]
    (choice, number), bad = load_questions(write(root / "p.jsonl", rows))
    assert bad == []
    assert (choice.id, choice.text, choice.options, choice.gold) == (
        "p:0",
        "Which?",
        ("x", "y"),
        "B",
    )
    assert (choice.video, choice.source) == (str(root / "b.mp4"), "d")
    assert (number.kind, number.gold, len(number.images)) == (Kind.NUMERIC, "3.5", 2)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"prompt": [{"role": "assistant", "content": "Hi"}], "answer": "3"},
            "a turn of 'assistant'",
        ),
        ({"prompt": '[{"role": ', "answer": "3"}, "Expecting"),
        ({"prompt": ["hello"], "answer": "3"}, "a turn of None"),
        ({"prompt": "How?", "answer": "3", "videos": ["b.mp4", "b.mp4"]}, "2 videos"),
        ({"prompt": "How?", "answer": ["3"]}, "not a text or a number"),
        ({"prompt": "", "answer": "3"}, "text: "),
        ({"prompt": "How?", "answer": "3", "kind": "essay"}, "'essay' is not a valid Kind"),
        ({"prompt": "How?", "answer": "3", "video": "https://x.org/a.mp4"}, "not a local file"),
    ],
)
def test_a_bad_openrlhf_row_is_reported(root, row, reason):
    good, bad = load_questions(write(root / "p.jsonl", [{"prompt": "Why?", "answer": "3"}, row]))
    assert len(good) == 1
    assert reason in bad[0].reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"kind": "numeric"}, "it has options, but its kind is numeric"),
        ({"gold": "C"}, "the gold answer 'C'"),
        ({"kind": "math", "options": [], "gold": "["}, "the gold answer '['"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"id": ""}, "id: String should have at least 1 character"),
    ],
)
def test_a_bad_row_of_our_own_is_reported(tmp_path, row, reason):
    good, bad = load_questions(write(tmp_path / "q.jsonl", [VERIPO_ROW | row]))
    assert good == []
    assert reason in bad[0].reason


def test_a_broken_line_costs_that_line_only(tmp_path):
    path = tmp_path / "q.jsonl"
    rows = [
        json.dumps(VERIPO_ROW),
        '{"id": "cut',
        "[1, 2]",
        "",
        json.dumps(VERIPO_ROW | {"id": "r"}),
    ]
    path.write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    good, bad = load_questions(path)
    assert [question.id for question in good] == ["q", "r"]
    assert [item.where for item in bad] == [f"{path}:2", f"{path}:3"]
    assert "not JSON" in bad[0].reason
    assert "not a JSON object" in bad[1].reason


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no questions in it"),
        (b" \n ", "no questions in it"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'[{"id": "q"}, {"id"', "begins as a JSON list"),
        (b"PAR1 and then nothing", "not a readable parquet"),
        (b'{"a": 1, "b": 2}\n', r"of no format known here \(fields of the first: a, b\)"),
        (b"just words\n", r"of no format known here \(fields of the first: none\)"),
    ],
)
def test_a_file_without_questions_is_an_error_that_says_why(tmp_path, content, message):
    path = tmp_path / "q.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_questions(path)
    assert str(path) in error.value.problem
    assert error.value.fix


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        load_questions(tmp_path / "none.jsonl")


def test_a_file_of_two_formats_is_not_guessed_at(root):
    path = write(root / "mixed.jsonl", [VIDEO_R1_ROW, VERIPO_ROW])
    with pytest.raises(DataError, match="could be of veripo or video_r1"):
        load_questions(path)
    good, bad = load_questions(path, "veripo")
    assert (len(good), len(bad)) == (1, 1)


def test_an_unknown_format_names_those_there_are(tmp_path):
    path = write(tmp_path / "q.jsonl", [VERIPO_ROW])
    with pytest.raises(DataError, match="'csv'") as error:
        load_questions(path, "csv")
    assert all(name in error.value.fix for name in FORMATS)
    with pytest.raises(DataError, match="not parquet"):
        load_questions(path, "parquet")


def test_the_formats_are_those_of_the_setting():
    from typing import get_args

    from veripo_ray.config import Data

    assert set(FORMATS) == set(get_args(Data.model_fields["format"].annotation))


field = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = sorted({*VERIPO_ROW, *VIDEO_R1_ROW, *PAPER_ROW, "message", "image", "videos", "process"})


@pytest.mark.parametrize("name", CONVERTERS)
@given(row=st.dictionaries(st.sampled_from(FIELDS), field))
def test_a_row_of_anything_is_a_question_or_a_value_error(name, row):
    base = {"veripo": VERIPO_ROW, "video_r1": VIDEO_R1_ROW, "veripo_paper": PAPER_ROW}
    row = base.get(name, {"message": CHAT, "answer": "B"}) | row
    with contextlib.suppress(ValueError):
        assert isinstance(CONVERTERS[name](row, "fallback"), Question)
