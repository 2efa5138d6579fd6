"""A run at a URI: what its local folder holds is brought there at every checkpoint.

    attempts/000002-5f0c.json       who has begun; the one with the largest name may write
    config.yaml, questions/, data/  as the run began; sft/ when the cold start is over
    checkpoints/000007-000002-5f0c/ weights and states, each part from the node where it was made
    journal/groups.msgpack/0-81920.000002-5f0c    what has been appended since the checkpoint before
    checkpoints/000007-000002-5f0c.json    the record, written last: every file above, by size
    summary.json, report.html, ...  for people; replaced

No attempt writes a name that another one writes, except what is for people, so that nothing a newer
one has can be spoilt, however late an older one still writes. A checkpoint counts when its record
is there and every file has the size that it says. It needs a store that lists what has been written
(S3, GCS, Azure and local ones do), and nothing like a lock or a conditional write.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from veripo_ray.errors import TakenOver
from veripo_ray.runstate import Checkpoints
from veripo_ray.storage import Store

ATTEMPTS, CHECKPOINTS = "attempts", "checkpoints"
BEGINNING = ("config.yaml", "questions", "data", "sft")
FOR_PEOPLE = (
    *("config.yaml", "summary.json", "status.json", "samples.json", "metrics.jsonl"),
    *("log.jsonl", "report.html"),
)
RECORD = "record.json"  # in the local folder: of its last checkpoint that is at the URI


class Piece(BaseModel):
    """Bytes [start, end) of a file that grows."""

    model_config = ConfigDict(frozen=True)

    start: int
    end: int
    name: str


class Record(BaseModel):
    """A whole checkpoint: its files, those of the earlier ones that are still needed, the pieces of
    the files that grow."""

    number: str
    attempt: str
    files: dict[str, int]
    kept: dict[str, str]  # folders at the URI, by the checkpoint's local name
    growing: dict[str, list[Piece]]


class Mirror:
    """The run at `uri`, as one attempt sees it."""

    def __init__(self, uri: str, attempt: str = "") -> None:
        """attempt: what `begin` gave; none is needed to read."""
        self.store, self.uri, self.attempt = Store(uri), uri.rstrip("/"), attempt
        self._growing: dict[str, list[Piece]] = {}
        self._kept: dict[str, str] = {}

    # --- attempts

    def begin(self) -> str:
        """Begin an attempt: from now on every earlier one is refused. Of two that begin at the same
        moment with the same number, the larger name goes on."""
        newest = max(self._attempts(), default="000000-")
        self.attempt = f"{int(newest.partition('-')[0]) + 1:06d}-{secrets.token_hex(4)}"
        self.store.write(f"{ATTEMPTS}/{self.attempt}.json", b"{}")
        self.check()
        return self.attempt

    def check(self) -> None:
        """Raises TakenOver when a newer attempt has begun."""
        newest = max(self._attempts(), default=self.attempt)
        if newest != self.attempt:
            raise TakenOver(
                f"attempt {int(newest.partition('-')[0])} has taken over the run at {self.uri}: "
                f"this one, {self.attempt}, writes no more",
                fix="nothing, if that was meant; see the log of the newer one",
            )

    def _attempts(self) -> list[str]:
        return [Path(name).stem for name in self.store.sizes(ATTEMPTS)]

    # --- from the local folder to the URI

    def begun(self) -> bool:
        return self.store.has("config.yaml")

    def put_beginning(self, folder: Path) -> None:
        """What a run has before its first step; the settings last, which say that it has begun."""
        for name in ("questions", "data", "config.yaml"):
            if (folder / name).is_dir():
                self.store.put_tree(folder / name, name)
            elif (folder / name).is_file():
                self.store.put(folder / name, name)

    def put_cold_start(self, folder: Path) -> None:
        """The checkpoints that the sft phases have made: what `train_sft` takes for finished."""
        for trained in (folder / "sft").glob("*/*/hf"):
            self.store.put_tree(trained, trained.relative_to(folder).as_posix())

    def clear(self) -> None:
        """Delete a run, but not who has tried it: an attempt that goes on must know."""
        for name in {name.split("/")[0] for name in self.store.sizes()} - {ATTEMPTS}:
            self.store.delete(name)

    def place(self, checkpoint: str) -> str:
        """The URI of a checkpoint by its local name, whole or being written: an earlier attempt's,
        if it came from it, else where this attempt puts it."""
        return f"{self.uri}/{CHECKPOINTS}/{self._folder(checkpoint.partition('.')[0])}"

    def _folder(self, checkpoint: str) -> str:
        return self._kept.get(checkpoint, f"{checkpoint}-{self.attempt}")

    def commit(self, folder: Path, checkpoint: str, sizes: dict[str, int]) -> None:
        """Make the checkpoint whole at the URI; the learner's ranks have put their parts already.

        sizes: of the files that grow, when the checkpoint was made. Raises TakenOver, StorageError.
        """
        self.check()
        remote = f"{CHECKPOINTS}/{self._folder(checkpoint)}"
        for file in (folder / CHECKPOINTS / checkpoint).iterdir():
            if file.is_file():  # the position; folders are the learner's
                self.store.put(file, f"{remote}/{file.name}")
        for name, size in sizes.items():
            self._put_growth(folder / name, name, size)
        self._kept = self._names(folder)
        record = Record(
            number=checkpoint,
            attempt=self.attempt,
            files=self.store.sizes(remote),
            kept=self._kept,
            growing=self._growing,
        )
        self.check()
        self.store.write(f"{remote}.json", record.model_dump_json().encode())
        (folder / RECORD).write_text(record.model_dump_json())
        self.check()  # a newer attempt may be going on from what is no longer kept
        self._prune()
        self.put_for_people(folder)

    def put_for_people(self, folder: Path) -> None:
        self.check()
        for name in FOR_PEOPLE:
            if (folder / name).is_file():
                self.store.put(folder / name, name)
        if (folder / "tensorboard").is_dir():
            self.store.put_tree(folder / "tensorboard", "tensorboard")

    def _put_growth(self, file: Path, name: str, size: int) -> None:
        pieces = self._growing.setdefault(name, [])
        start = pieces[-1].end if pieces else 0
        if size == start:
            return
        with file.open("rb") as source:
            source.seek(start)
            data = source.read(size - start)
        piece = Piece(start=start, end=size, name=f"{name}/{start}-{size}.{self.attempt}")
        self.store.write(f"journal/{piece.name}", data)
        pieces.append(piece)

    def _names(self, folder: Path) -> dict[str, str]:
        """Of every whole checkpoint that is still there locally."""
        return {path.name: self._folder(path.name) for path in Checkpoints(folder).whole()}

    def _prune(self) -> None:
        """Checkpoints that are not kept any more go, with what earlier attempts left half done."""
        there = {name.split("/")[1].removesuffix(".json") for name in self.store.sizes(CHECKPOINTS)}
        for name in there - set(self._kept.values()):
            if name.partition("-")[2] <= self.attempt:
                self._delete_checkpoint(name)

    def _delete_checkpoint(self, name: str) -> None:
        self.store.delete(f"{CHECKPOINTS}/{name}.json")  # first: without it the rest counts nothing
        self.store.delete(f"{CHECKPOINTS}/{name}")

    # --- from the URI to the local folder

    def get_beginning(self, folder: Path) -> None:
        for name in BEGINNING[1:]:
            self.store.get_tree(name, folder / name)
        self.store.get("config.yaml", folder / "config.yaml")

    def restore(self, folder: Path) -> str | None:
        """Bring the newest whole checkpoint's position, and the files that grow as they were then,
        into `folder`, in the place of what it has; the checkpoint's local name. What the learner
        has saved stays at the URI, for the nodes that want it: see `place`."""
        for name in (CHECKPOINTS, "journal"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (*FOR_PEOPLE[1:], RECORD):
            (folder / name).unlink(missing_ok=True)
        record = self.newest()
        if record is None:
            return None
        for name, remote in record.kept.items():
            self._get_position(f"{CHECKPOINTS}/{remote}", folder / CHECKPOINTS / name)
        for name, pieces in record.growing.items():
            self._get_growth(pieces, folder / name)
        for name in FOR_PEOPLE:
            if self.store.has(name) and not (folder / name).exists():
                self.store.get(name, folder / name)
        (folder / RECORD).write_text(record.model_dump_json())
        return record.number

    def _get_position(self, remote: str, checkpoint: Path) -> None:
        for name in self.store.sizes(remote):
            if name.removeprefix(f"{remote}/").count("/") == 0:
                self.store.get(name, checkpoint / Path(name).name)

    def _get_growth(self, pieces: Sequence[Piece], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for piece in pieces:
                file.write(self.store.read(f"journal/{piece.name}"))

    def go_on_from(self, folder: Path) -> None:
        """Continue the record that `restore` or `commit` has left in the folder."""
        if (folder / RECORD).is_file():
            record = Record.model_validate_json((folder / RECORD).read_bytes())
            self._growing, self._kept = record.growing, record.kept

    def newest(self) -> Record | None:
        """Of the whole checkpoints, the last one of the newest attempt that made one."""
        sizes = self.store.sizes(CHECKPOINTS) | self.store.sizes("journal")
        names = [name for name in sizes if name.endswith(".json") and name.count("/") == 1]
        records = [record for name in names if (record := self._record(name, sizes))]
        return max(records, key=lambda record: (record.attempt, record.number), default=None)

    def _record(self, name: str, sizes: dict[str, int]) -> Record | None:
        """None when it, or a file that it names, is missing or torn."""
        try:
            record = Record.model_validate_json(self.store.read(name))
        except ValidationError:
            return None
        wanted = record.files | {
            f"journal/{piece.name}": piece.end - piece.start
            for pieces in record.growing.values()
            for piece in pieces
        }
        return record if all(sizes.get(n) == size for n, size in wanted.items()) else None


def growing_sizes(journals: dict[str, int], metrics: int) -> dict[str, int]:
    """Names in the run's folder of the files that grow, with the bytes that a checkpoint counts."""
    names = {f"journal/{name}.msgpack": size for name, size in journals.items()}
    return {**names, "metrics.jsonl": metrics}
