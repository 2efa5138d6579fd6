"""Files at a URI: s3://, gs://, abfs://, file:// and whatever else fsspec knows.

A file is written whole or not at all as far as the store can do that, never in place of one that
somebody may be reading, and calls are tried again when the store fails for a moment.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from tenacity import (
    RetryError,
    retry,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from veripo_ray.errors import ConfigError, StorageError

T = TypeVar("T")
TRIES = 5
SIDE_BY_SIDE = 8  # files on their way at once
KEPT_COPIES = 3  # of what `here` has fetched of one run, on one machine
_BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "memory"}
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


def is_uri(text: object) -> bool:
    return "://" in str(text)


def cache_folder() -> Path:
    """Where this machine keeps its part of runs that are at a URI."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "veripo-ray" / "runs"


def local_folder(uri: str) -> Path:
    """The folder in which a run works that is kept at `uri`: the same for every attempt at it."""
    uri = uri.rstrip("/")
    return cache_folder() / f"{PurePosixPath(uri).name}-{zlib.crc32(uri.encode()):08x}"


def here(place: str) -> str:
    """A local folder with the contents of `place`: itself, or where it is the URI of a part of a
    run's checkpoint (`hf`, `state`) a copy, fetched once a machine."""
    if not is_uri(place):
        return place
    run, _, name = place.rpartition("/checkpoints/")
    own = local_folder(run)
    copies = own.with_name(f"{own.name}.fetched")
    folder = copies / name
    copies.mkdir(parents=True, exist_ok=True)
    with (copies / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several ranks of a machine want the same
        if not folder.exists():
            partial = copies / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            Store(place).get_tree("", partial)
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(folder)
            _forget_old(copies)
    return str(folder)


def _forget_old(copies: Path) -> None:
    folders = [path for path in copies.iterdir() if path.is_dir()]
    for old in sorted(folders, key=lambda path: path.stat().st_mtime)[:-KEPT_COPIES]:
        shutil.rmtree(old, ignore_errors=True)


class Store:
    """The files below a URI, by names relative to it."""

    def __init__(self, uri: str) -> None:
        """Raises ConfigError when the URI's kind is not known, or its library is not installed."""
        self.uri = uri.rstrip("/")
        self._fs, self._root = _open(self.uri)

    def __reduce__(self) -> tuple:
        return Store, (self.uri,)

    def write(self, name: str, data: bytes) -> None:
        def put() -> None:
            self._make_parent(name)
            self._fs.pipe_file(self._path(name), data)

        self._tried(put, name, "written")

    def read(self, name: str) -> bytes:
        """Raises StorageError when there is no such file."""
        return self._tried(lambda: self._fs.cat_file(self._path(name)), name, "read")

    def has(self, name: str) -> bool:
        return name in self.sizes(name)

    def sizes(self, below: str = "") -> dict[str, int]:
        """Name and bytes of every file below a folder, or of one file, looked up afresh."""

        def find() -> dict[str, Any]:
            self._fs.invalidate_cache()
            return self._fs.find(self._path(below), detail=True)

        try:
            found = self._tried(find, below, "listed")
        except FileNotFoundError:
            return {}
        cut = len(self._root.rstrip("/")) + 1
        return {path[cut:]: int(about["size"]) for path, about in found.items()}

    def put(self, file: Path, name: str) -> None:
        def put() -> None:
            self._make_parent(name)
            self._fs.put_file(str(file), self._path(name))

        self._tried(put, name, "written")

    def get(self, name: str, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._tried(lambda: self._fs.get_file(self._path(name), str(file)), name, "read")

    def put_tree(self, folder: Path, name: str) -> None:
        """Every file below `folder`, links left out."""
        files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
        names = [f"{name}/{file.relative_to(folder).as_posix()}".lstrip("/") for file in files]
        _all(self.put, files, names)

    def get_tree(self, name: str, folder: Path) -> None:
        """The files below `name` into `folder`, which is there then even if they are none."""
        folder.mkdir(parents=True, exist_ok=True)
        names = list(self.sizes(name))
        _all(self.get, names, [folder / Path(n).relative_to(name or ".") for n in names])

    def delete(self, name: str) -> None:
        """A file or a folder; nothing where there is none."""

        def remove() -> None:
            self._fs.invalidate_cache()
            if self._fs.exists(self._path(name)):
                self._fs.rm(self._path(name), recursive=True)

        self._tried(remove, name, "deleted")

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}".rstrip("/")

    def _make_parent(self, name: str) -> None:
        """Folders must be there on a file system; in a bucket there are none, and asking for one
        may make a bucket of a misspelt name."""
        if self.uri.partition("://")[0] not in _BUCKETS:
            self._fs.makedirs(self._fs._parent(self._path(name)), exist_ok=True)

    def _tried(self, call: Callable[[], T], name: str, what: str) -> T:
        again = retry(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(TRIES),
            wait=wait_exponential_jitter(multiplier=0.2, max=20),
        )
        try:
            return again(call)()
        except RetryError as error:
            raise self._failed(name, what, error.last_attempt.exception()) from error
        except FileNotFoundError as error:
            if what == "listed":
                raise
            raise self._failed(name, what, error) from None
        except OSError as error:
            raise self._failed(name, what, error) from error

    def _failed(self, name: str, what: str, error: BaseException | None) -> StorageError:
        return StorageError(
            f"{self.uri}/{name} could not be {what}: {type(error).__name__}: {error}",
            fix="check the address, the credentials of every node, and the quota; "
            "then --resume goes on from the last whole checkpoint there",
        )


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, _FINAL)


def _open(uri: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    kind = uri.partition("://")[0]
    try:
        return url_to_fs(uri)
    except ImportError as error:
        package = known_implementations[kind]["class"].partition(".")[0]
        raise ConfigError(
            f"{uri}: {error}", fix=f"pip install {package}, on every node of the cluster"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{uri}: {error}", fix="use a kind that fsspec knows: s3://, gs://, abfs://, file://"
        ) from error


def _all(call: Callable[[Any, Any], None], first: Iterable[Any], second: Iterable[Any]) -> None:
    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        list(threads.map(call, first, second))
