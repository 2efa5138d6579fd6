"""A file is read in pieces and gives what it gives when it is read whole."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from veripo_ray.errors import DataError
from veripo_ray.questions import rows
from veripo_ray.questions.json_list import values

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=10,
)
indents = st.sampled_from([None, 0, 2])


def pieces(whole: str, size: int) -> list[str]:
    return [whole[at : at + size] for at in range(0, len(whole), size)]


@given(st.lists(plain, max_size=6), indents, st.booleans(), st.integers(1, 40))
@example([0.5], None, False, 3)  # cut behind the point
@example([1e-30], None, False, 5)  # cut behind the sign of the exponent
def test_a_list_in_pieces_has_the_values_of_the_whole(items, indent, ascii_only, size):
    whole = f" {json.dumps(items, indent=indent, ensure_ascii=ascii_only)} \n"
    assert list(values(iter(pieces(whole, size)))) == items


@given(st.lists(plain, max_size=4), st.data(), st.integers(1, 40))
def test_a_list_with_one_character_lost_or_added_is_judged_as_the_whole_is(items, data, size):
    whole = json.dumps(items)
    at = data.draw(st.integers(0, len(whole)))
    changed = whole[:at] + data.draw(st.sampled_from(["", *'[]{},:"\\x1'])) + whole[at + 1 :]
    try:
        wanted = json.loads(changed)
    except ValueError:
        wanted = None
    try:
        found = list(values(iter(pieces(changed, size))))
    except ValueError:
        found = None
    assert found == (wanted if isinstance(wanted, list) else None)


def test_a_fault_is_placed_where_it_is() -> None:
    for size in (1, 7, 100):
        with pytest.raises(ValueError, match="char 16"):
            list(values(iter(pieces('[{"a": 1}, 2, 3 4]', size))))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(text, plain, max_size=3), min_size=1, max_size=6), st.booleans())
def test_pieces_of_a_few_bytes_give_the_rows_of_the_whole_file(tmp_path, items, as_list):
    path = tmp_path / "rows"
    lines = "\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    content = json.dumps(items, ensure_ascii=False) if as_list else lines
    path.write_text("\ufeff" + content, encoding="utf-8")
    wanted = [
        (f"{path}[{n}]" if as_list else f"{path}:{n + 1}", item) for n, item in enumerate(items)
    ]
    whole = list(rows.read_rows(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "PIECE", 3)  # less than a character of four bytes
        assert list(rows.read_rows(path)) == whole == wanted


def test_a_byte_that_is_no_text_is_placed_in_the_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(rows, "PIECE", 4)
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"a": "\u00e9\u00e9"}\n'.encode() + b'{"a": "\xff"}\n')
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 21\)"):
        list(rows.read_rows(path))


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows"
    items = [{"id": f"q{n}", "text": "?" * 1000} for n in range(12_000)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(items), path, row_group_size=1000)
    else:
        lines = map(json.dumps, items)
        path.write_text("\n".join(lines) if kind == "jsonl" else json.dumps(items))
    next(rows.read_rows(path))  # what is imported on the way is not the file's
    tracemalloc.start()
    assert sum(1 for _ in rows.read_rows(path)) == 12_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * rows.PIECE  # of 12
