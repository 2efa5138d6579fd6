"""A run at a URI: what comes back is a whole checkpoint with the journals of that moment, whoever
was cut short or still writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from veripo_ray.errors import TakenOver
from veripo_ray.mirror import Mirror, growing_sizes
from veripo_ray.runstate import Checkpoints, RunState
from veripo_ray.storage import Store


class _Machine:
    """One attempt at the run, on a machine of its own."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.mirror, self.folder = Mirror(uri), folder
        self.mirror.begin()
        folder.mkdir()
        self.restored = self.mirror.restore(folder)
        self.mirror.go_on_from(folder)
        self.checkpoints = Checkpoints(folder)
        (folder / "journal").mkdir(exist_ok=True)

    @property
    def journal(self) -> bytes:
        return (self.folder / "journal" / "groups.msgpack").read_bytes()

    def work(self, groups: bytes) -> dict[str, int]:
        """Append to the journal, and write the learner's part of a checkpoint."""
        with (self.folder / "journal" / "groups.msgpack").open("ab") as file:
            file.write(groups)
        (self.folder / "metrics.jsonl").write_bytes(b"{}\n" * len(self.journal))
        self.writing = self.checkpoints.begin()
        (self.writing / "hf").mkdir(parents=True)
        (self.writing / "hf" / "model").write_bytes(b"weights of " + groups)
        return growing_sizes({"groups": len(self.journal)}, 3 * len(self.journal))

    def save(self, groups: bytes) -> str:
        sizes = self.work(groups)
        Store(self.mirror.place(self.writing.name)).put_tree(self.writing, "")
        final = self.checkpoints.commit(self.writing, RunState.beginning(2), keep=2)
        self.mirror.commit(self.folder, final.name, sizes)
        return final.name

    def weights(self, checkpoint: str) -> bytes:
        return Store(self.mirror.place(checkpoint)).read("hf/model")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket/run"


def test_a_new_machine_goes_on_from_the_newest_checkpoint_and_its_journals(
    uri: str, tmp_path: Path
) -> None:
    first = _Machine(uri, tmp_path / "first")
    assert first.restored is None
    first.save(b"aa")
    first.save(b"bbb")
    first.save(b"cccc")
    first.work(b"lost, since no checkpoint came after it")
    second = _Machine(uri, tmp_path / "second")
    assert second.restored == "000003"
    assert second.journal == b"aabbbcccc"
    assert (second.folder / "metrics.jsonl").read_bytes() == b"{}\n" * 9
    assert second.weights("000003") == b"weights of cccc"
    assert [path.name for path in second.checkpoints.whole()] == ["000002", "000003"]
    assert second.save(b"d") == "000004"
    third = _Machine(uri, tmp_path / "third")
    assert (third.restored, third.journal) == ("000004", b"aabbbccccd")
    assert third.weights("000003") == b"weights of cccc"  # kept, as locally
    names = {name.split("/")[1] for name in third.mirror.store.sizes("checkpoints")}
    assert {name[:6] for name in names} == {"000003", "000004"}


@pytest.mark.parametrize("torn", ["weights", "record", "journal"])
def test_an_upload_that_was_cut_short_is_never_taken_for_whole(
    uri: str, tmp_path: Path, torn: str
) -> None:
    first = _Machine(uri, tmp_path / "first")
    first.save(b"aa")
    first.save(b"bbb")
    place = first.mirror.place("000002").removeprefix(f"{uri}/")
    store = first.mirror.store
    journal = next(name for name in store.sizes("journal") if "/2-5." in name)
    name = {"weights": f"{place}/hf/model", "record": f"{place}.json", "journal": journal}[torn]
    store.write(name, store.read(name)[:1])
    second = _Machine(uri, tmp_path / "second")
    assert (second.restored, second.journal) == ("000001", b"aa")


def test_an_attempt_that_still_writes_spoils_nothing_of_the_newer_one(
    uri: str, tmp_path: Path
) -> None:
    old = _Machine(uri, tmp_path / "old")
    old.save(b"aa")
    new = _Machine(uri, tmp_path / "new")
    sizes = old.work(b"old")  # its ranks, which know of nothing, bring their parts
    Store(old.mirror.place(old.writing.name)).put_tree(old.writing, "")
    assert new.save(b"new") == "000002"
    final = old.checkpoints.commit(old.writing, RunState.beginning(2), keep=2)
    with pytest.raises(TakenOver, match="attempt 2 has taken over"):
        old.mirror.commit(old.folder, final.name, sizes)
    third = _Machine(uri, tmp_path / "third")
    assert (third.restored, third.journal) == ("000002", b"aanew")
    assert third.weights("000002") == b"weights of new"
    with pytest.raises(TakenOver, match="attempt 3"):
        new.mirror.put_for_people(new.folder)


def test_even_a_record_that_was_written_after_the_check_does_not_count(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check and the write are two steps: a process may sleep for minutes between them."""
    old = _Machine(uri, tmp_path / "old")
    old.save(b"aa")
    new = _Machine(uri, tmp_path / "new")
    new.save(b"new")
    monkeypatch.setattr(old.mirror, "check", lambda: None)
    old.save(b"late")
    old.save(b"later")
    third = _Machine(uri, tmp_path / "third")
    assert (third.restored, third.journal) == ("000002", b"aanew")
    assert third.weights("000002") == b"weights of new"
