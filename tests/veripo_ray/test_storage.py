"""Files at a URI, on two kinds of store that need no network."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from veripo_ray import recipe, storage
from veripo_ray.errors import ConfigError, StorageError
from veripo_ray.storage import Store, here


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    where = f"{tmp_path}/runs" if request.param == "file" else f"/{uuid4().hex}"
    return Store(f"{request.param}://{where}/run")


def test_a_tree_comes_back_as_it_went(store: Store, tmp_path: Path) -> None:
    tree = {"a.bin": b"\x00" * 5000, "deep/er/b.txt": b"b", "deep/empty": b""}
    for name, data in tree.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(data)
    store.put_tree(tmp_path / "tree", "some/where")
    assert store.sizes("some") == {f"some/where/{n}": len(d) for n, d in tree.items()}
    store.get_tree("some/where", tmp_path / "back")
    back = {
        path.relative_to(tmp_path / "back").as_posix(): path.read_bytes()
        for path in (tmp_path / "back").rglob("*")
        if path.is_file()
    }
    assert back == tree
    store.delete("some/where/deep")
    assert list(store.sizes()) == ["some/where/a.bin"]
    store.delete("some/where/deep")  # not there any more


def test_what_is_not_there_is_named_with_its_uri(store: Store) -> None:
    assert store.sizes("nothing") == {}
    assert not store.has("nothing")
    with pytest.raises(StorageError, match=f"{store.uri}/nothing could not be read"):
        store.read("nothing")


def test_a_store_that_fails_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "wait_exponential_jitter", lambda **_: lambda _: 0.0)
    failures = iter([ConnectionResetError("reset"), TimeoutError("slow")])

    def unsteady(self: MemoryFileSystem, path: str, value: bytes) -> None:
        if error := next(failures, None):
            raise error
        whole(self, path, value)

    whole = MemoryFileSystem.pipe_file
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", unsteady)
    store = Store(f"memory://{uuid4().hex}")
    store.write("name", b"data")
    assert store.read("name") == b"data"
    failures = iter([ConnectionResetError("reset")] * 99)
    with pytest.raises(StorageError, match="could not be written: ConnectionResetError: reset"):
        store.write("name", b"other")


@pytest.mark.parametrize(
    ("uri", "fix"), [("s3://bucket/run", "pip install s3fs"), ("odd://x/run", "s3://, gs://")]
)
def test_a_store_whose_library_is_missing_is_refused_with_the_fix(uri: str, fix: str) -> None:
    if uri.startswith("s3"):
        try:
            import s3fs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("s3fs is installed")
    with pytest.raises(ConfigError, match=fix):
        Store(uri)


def test_a_part_of_a_checkpoint_is_fetched_once_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = Store(f"file://{tmp_path}/run")
    for part in ("hf", "state"):
        store.write(f"checkpoints/1-a/{part}/file", part.encode())
    place = f"{store.uri}/checkpoints/1-a"
    states = here(f"{place}/state")
    assert {path.name for path in Path(states).parent.iterdir()} == {"state"}
    store.delete("checkpoints/1-a/state")
    assert (Path(here(f"{place}/state")) / "file").read_bytes() == b"state"
    assert (Path(here(f"{place}/hf")) / "file").read_bytes() == b"hf"
    assert here("/a/folder") == "/a/folder"


def test_a_uri_as_output_is_where_the_run_is_kept_and_reads_back_alike() -> None:
    run = recipe.load("quickstart", ["output=s3://bucket/runs/one"])
    assert run.storage == "s3://bucket/runs/one"
    assert run.output == storage.local_folder("s3://bucket/runs/one")
    assert run.output.is_absolute()
    again = recipe.check(run.model_dump(mode="json"))
    assert (again.storage, again.output) == (run.storage, run.output)
