"""The cache gives back what was put into it, whole, or nothing; and keeps within its bound."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from veripo_ray.errors import ConfigError
from veripo_ray.features.cache import DiskCache, default_folder

KEY = "ab" * 20
BOUND = 1 << 30


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", BOUND)


def rows(count: int = 100, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 64)).astype(np.float32)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("??/*"))


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def start_writer(
    folder: Path, key: str, count: int, times: int, *more: str
) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).parent / "writer.py")]
    process = subprocess.Popen(
        [*command, str(folder), key, str(count), str(times), *more],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("dtype", ["float32", "uint16", "uint8"])
@pytest.mark.parametrize("shape", [(7, 64), (0, 64), (2, 3, 5, 3)])
def test_an_array_comes_back_bit_for_bit_with_its_meta_data(
    cache: DiskCache, dtype: str, shape: tuple[int, ...]
) -> None:
    array = (rows(90).ravel()[: int(np.prod(shape))].reshape(shape) * 100).astype(dtype)
    assert cache.get(KEY) is None
    cache.put(KEY, {"grid": [1, 2, 3], "seconds": 0.1}, array)
    meta, found = DiskCache(cache.folder, BOUND).get(KEY)
    assert meta == {"grid": [1, 2, 3], "seconds": 0.1}
    assert found.dtype == array.dtype
    assert found.shape == shape
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("keep", [0, 10, 40, 1000, -1])
def test_a_file_cut_short_is_dropped_with_a_word_in_the_log(
    cache: DiskCache, keep: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(KEY, {}, rows())
    (path,) = files(cache.folder)
    os.truncate(path, keep if keep >= 0 else path.stat().st_size + keep)
    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY) is None
    assert str(path) in caplog.text
    assert not path.exists()
    cache.put(KEY, {}, rows())
    assert np.array_equal(cache.get(KEY)[1], rows())


@pytest.mark.parametrize("where", [3, 15, 39, 60, -3])
def test_one_changed_byte_anywhere_is_noticed(
    cache: DiskCache, where: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(KEY, {"grid": [1, 2, 3]}, rows())
    (path,) = files(cache.folder)
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY) is None
    assert "will be made again" in caplog.text


def test_a_file_under_a_wrong_name_is_not_taken_for_another(cache: DiskCache) -> None:
    cache.put(KEY, {}, rows())
    (path,) = files(cache.folder)
    other = path.with_name(path.name.replace(KEY, "ab" + "c" * 38))
    shutil.copy(path, other)
    assert cache.get("ab" + "c" * 38) is None
    assert cache.get(KEY) is not None


def test_two_processes_that_write_one_key_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, KEY, 500, 60) for _ in range(2)]
    reader, hits = DiskCache(tmp_path, BOUND), 0
    while any(writer.poll() is None for writer in writers):
        if found := reader.get(KEY):
            assert found[0] == {"rows": 500}
            assert found[1][-1, -1] == 500 * 64 - 1
            hits += 1
    assert [writer.wait() for writer in writers] == [0, 0]
    assert hits
    assert len(files(tmp_path)) == 1


def test_a_writer_killed_in_the_middle_harms_nobody(tmp_path: Path) -> None:
    writer = start_writer(tmp_path, KEY, 500, 1, "die")
    assert writer.wait(60) == -signal.SIGKILL
    (left,) = files(tmp_path)
    cache = DiskCache(tmp_path, BOUND)
    assert cache.get(KEY) is None
    assert left.exists()  # it might be a living writer's
    cache.put(KEY, {}, rows())
    assert np.array_equal(cache.get(KEY)[1], rows())
    long_ago = time.time() - 2 * 3600
    os.utime(left, (long_ago, long_ago))
    again = DiskCache(tmp_path, BOUND)
    assert not left.exists()
    assert np.array_equal(again.get(KEY)[1], rows())


def test_the_bound_holds_and_what_was_used_last_stays(tmp_path: Path) -> None:
    bound = 20 * (rows().nbytes + 200)
    cache = DiskCache(tmp_path, bound)
    for number in range(60):
        cache.put(f"{number:040d}", {}, rows(seed=number))
        assert used(tmp_path) <= bound
        assert np.array_equal(cache.get("0" * 40)[1], rows(seed=0))  # in use all the time
    kept = [n for n in range(60) if cache.get(f"{n:040d}")]
    assert len(kept) >= 17  # of the 20 that fit
    assert kept[1:] == list(range(60 - len(kept) + 1, 60))


def test_two_writers_who_do_not_know_of_each_other_keep_the_bound_together(tmp_path: Path) -> None:
    bound = 40 * (rows().nbytes + 200)
    caches = [DiskCache(tmp_path, bound) for _ in range(2)]
    for number in range(200):
        caches[number % 2].put(f"{number:040d}", {}, rows(seed=number))
        assert used(tmp_path) <= 1.2 * bound
    DiskCache(tmp_path, bound // 2)  # a smaller bound is kept from the start
    assert used(tmp_path) <= bound // 2


def test_what_is_larger_than_the_bound_is_not_kept_and_drops_nothing_else_for_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path, 10_000)
    with caplog.at_level(logging.WARNING):
        cache.put(KEY, {}, rows(1000))
    assert cache.get(KEY) is None
    assert "has no room" in caplog.text
    cache.put(KEY, {}, rows(10))
    assert cache.get(KEY) is not None


def test_a_folder_that_cannot_be_written_is_named_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"(?s)features\.cache_dir = .*features\.cache_gb=0"):
        DiskCache(tmp_path / "file" / "cache", BOUND)


def test_a_disk_that_fails_ends_the_writing_with_a_word_and_not_the_run(
    cache: DiskCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(KEY, {}, rows())
    (cache.folder / "cd").touch()  # where a folder should be
    with caplog.at_level(logging.WARNING):
        cache.put("cd" * 20, {}, rows())
        cache.put("ef" * 20, {}, rows())
    assert caplog.text.count("nothing more is written") == 1
    assert str(cache.folder) in cache.problem
    assert cache.get(KEY) is not None


def test_the_default_folder_honours_xdg_cache_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/veripo-ray/features")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache/veripo-ray/features"
