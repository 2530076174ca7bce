"""Vectors of texts on disk: what comes back is what was put in, or nothing."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from annotary.tasks import text_cache as module
from annotary.tasks.text_cache import TextCache, cache_folder, key_of
from tests.conftest import child_environment
from tests.tasks.cached_texts import keys_of, put, right_of

FOLDER = Path("cache")


def test_what_comes_back_is_what_was_put_in():
    cache = TextCache("model", FOLDER)
    assert right_of(cache, range(3)) == 0
    assert not cache.path.exists()  # asking makes no file
    put(cache, range(1300))
    assert right_of(cache, range(1300)) == 1300
    assert right_of(TextCache("model", FOLDER), range(500, 2000)) == 800
    assert cache.get([]) == {}


def test_other_models_share_nothing():
    put(TextCache("model fp32", FOLDER), range(5))
    assert right_of(TextCache("model bf16", FOLDER), range(5)) == 0
    assert right_of(TextCache("model fp32", FOLDER), range(5)) == 5


def test_vectors_that_are_put_again_take_the_place_of_the_first():
    cache = TextCache("model", FOLDER)
    put(cache, range(5), size=4)
    put(cache, range(5))
    assert right_of(cache, range(5)) == 5


def test_keys_keep_texts_apart():
    keys = [["ab"], ["a", "b"], ["a", "", "b"], ["b", "a"], [""], [], ["a\0b"], ["猫"], ["\udcff"]]
    assert len({key_of(texts) for texts in keys}) == len(keys)
    assert key_of(["a", "b"]) == key_of(("a", "b"))


def test_a_text_takes_its_numbers_and_little_more():
    cache = TextCache("model", FOLDER)
    put(cache, range(2000), size=512)
    assert 2048 < cache.path.stat().st_size / 2000 < 2048 * 1.4


def test_a_file_does_not_grow_without_end(monkeypatch):
    monkeypatch.setattr(module, "_MOST_BYTES", 200_000)
    cache = TextCache("model", FOLDER)
    for start in range(0, 5000, 100):
        put(cache, range(start, start + 100), size=128)
        assert right_of(cache, range(start, start + 100), size=128) == 100
    assert cache.path.stat().st_size < 400_000
    assert right_of(cache, range(5000), size=128) >= 100


# Files that cannot be used


def test_a_file_that_is_damaged_anywhere_gives_no_wrong_vector_and_is_made_anew():
    whole = TextCache("model", FOLDER)
    put(whole, range(200))
    content = whole.path.read_bytes()
    generator = random.Random(1)
    healed = 0
    for trial in range(32):
        data = bytearray(content)
        if trial % 4 == 0:
            data = data[: generator.randrange(len(data))]
        for _ in range(generator.choice([1, 1, 5, 100])):
            if data:
                data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        whole.path.write_bytes(data)
        cache = TextCache("model", FOLDER)
        right_of(cache, range(200))
        put(cache, range(200))
        right_of(TextCache("model", FOLDER), range(200))
        put(TextCache("model", FOLDER), range(200))
        healed += right_of(TextCache("model", FOLDER), range(200)) == 200
    assert healed >= 28  # of 32; where SQLite sees no damage, texts may stay unknown


@pytest.mark.parametrize(
    "content", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 4096, bytes(10_000)]
)
def test_a_file_that_is_something_else_is_made_anew(content: bytes):
    cache = TextCache("model", FOLDER)
    cache.path.parent.mkdir(parents=True)
    cache.path.write_bytes(content)
    assert right_of(cache, range(10)) == 0
    put(cache, range(10))
    put(cache, range(10))
    assert right_of(cache, range(10)) == 10


@pytest.mark.parametrize(
    "change",
    [
        "vector = X'00'",
        "vector = 'text'",
        "vector = zeroblob(64)",
        "vector = 5",
        "vector = X'0000C07F' || substr(vector, 5)",
        "vector = vector || vector",
        "vector = CAST(substr(vector, 1, 60) AS BLOB)",
        "truncated = 1 - truncated",
        "truncated = 'yes'",
        "truncated = 1e400",
        "checksum = X''",
        "checksum = 'x'",
        "vector = 'text', checksum = X''",
        "key = CAST(key AS TEXT)",
    ],
)
def test_rows_that_somebody_changed_are_not_believed(change: str):
    cache = TextCache("model", FOLDER)
    put(cache, range(10))
    with sqlite3.connect(cache.path) as connection:
        connection.execute(f"UPDATE {module._TABLE} SET {change}")
    connection.close()
    assert right_of(cache, range(10)) == 0
    put(cache, range(10))
    assert right_of(cache, range(10)) == 10


def test_vectors_of_two_texts_that_were_exchanged_are_not_believed():
    cache = TextCache("model", FOLDER)
    put(cache, [1, 2])
    one, other = keys_of([1, 2])
    with sqlite3.connect(cache.path) as connection:
        for before, after in ((one, b"x"), (other, one), (b"x", other)):
            connection.execute(f"UPDATE {module._TABLE} SET key = ? WHERE key = ?", (after, before))
    connection.close()
    assert cache.get([one, other]) == {}


def test_a_table_with_other_columns_keeps_nothing_and_breaks_nothing():
    cache = TextCache("model", FOLDER)
    cache.path.parent.mkdir(parents=True)
    with sqlite3.connect(cache.path) as connection:
        connection.execute(f"CREATE TABLE {module._TABLE} (key BLOB, vector BLOB)")
        connection.execute(f"INSERT INTO {module._TABLE} VALUES (?, ?)", (keys_of([1])[0], b"1234"))
    connection.close()
    assert cache.get(keys_of([1])) == {}
    put(cache, range(3))
    assert cache.get(keys_of([1])) == {}


@pytest.mark.parametrize("place", ["cache", "cache/texts", "the file"])
@pytest.mark.parametrize("kind", ["folder", "file", "link to itself", "dangling link"])
def test_what_stands_in_its_place_only_costs_time(place: str, kind: str):
    cache = TextCache("model", FOLDER)
    where = cache.path if place == "the file" else Path(place)
    where.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        where.mkdir()
    elif kind == "file":
        where.write_bytes(b"mine")
    else:
        where.symlink_to(where.name if kind == "link to itself" else "nowhere/at all")
    for _ in range(2):
        right_of(cache, range(3))
        put(cache, range(3))
    if place != "the file" and kind == "file":
        assert where.read_bytes() == b"mine"
        assert right_of(cache, range(3)) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_folders_and_files_without_rights_only_cost_time():
    cache = TextCache("model", FOLDER)
    put(cache, range(3))
    cache.path.chmod(0o400)
    cache.path.parent.chmod(0o500)
    try:
        assert right_of(cache, range(3)) == 3
        put(cache, range(6))
        assert right_of(TextCache("model", FOLDER), range(6)) == 3
        cache.path.parent.chmod(0)
        assert right_of(TextCache("model", FOLDER), range(3)) == 0
        put(TextCache("model", FOLDER), range(3))
    finally:
        cache.path.parent.chmod(0o700)


def test_a_folder_that_system_calls_refuse_only_costs_time(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    cache = TextCache("model", FOLDER)
    put(cache, range(3))
    monkeypatch.setattr(Path, "is_file", refuse)
    assert cache.get(keys_of(range(3))) == {}
    monkeypatch.setattr(Path, "mkdir", refuse)
    put(TextCache("other", FOLDER), range(3))


def test_a_disk_that_is_full_only_costs_time(monkeypatch):
    connect = sqlite3.connect

    def small(*args: object, **options: object) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.execute("PRAGMA max_page_count = 6")
        return connection

    monkeypatch.setattr(module.sqlite3, "connect", small)
    cache = TextCache("model", FOLDER)
    put(cache, range(5))
    put(cache, range(1000))
    assert right_of(TextCache("model", FOLDER), range(1000)) == 5


def test_a_file_that_another_process_holds_is_waited_for_once(monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.1)
    cache = TextCache("model", FOLDER)
    put(cache, range(3))
    tries = []
    connect = sqlite3.connect
    holder = connect(cache.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(
        module.sqlite3, "connect", lambda *a, **o: (tries.append(1), connect(*a, **o))[1]
    )
    assert right_of(cache, range(3)) == 0
    for _ in range(20):
        put(cache, range(6))
        assert right_of(cache, range(6)) == 0
    assert len(tries) == 1
    holder.execute("ROLLBACK")
    holder.close()
    assert right_of(TextCache("model", FOLDER), range(6)) == 3


# Several at once


def child(*arguments: object) -> subprocess.Popen[bytes]:
    """A process of its own that writes; see `cached_texts`."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tasks.cached_texts", *map(str, arguments)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=child_environment(),
    )


def test_four_processes_write_at_once():
    workers = [child(FOLDER.absolute(), worker) for worker in range(4)]
    for worker in workers:
        worker.communicate(timeout=60)
    assert [worker.returncode for worker in workers] == [0, 0, 0, 0]
    assert right_of(TextCache("model", FOLDER), range(440)) == 440


def test_threads_share_a_cache():
    cache = TextCache("model", FOLDER)
    errors: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for i in range(start, start + 50, 5):
                put(cache, range(i, i + 5))
                right_of(cache, range(200))
        except Exception as error:  # noqa: BLE001 - it is told in the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(50 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert right_of(cache, range(200)) == 200


def test_writers_that_are_killed_leave_whole_vectors():
    known = 0
    for trial in range(3):
        with child(FOLDER.absolute()) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"begun\n"
            time.sleep(0.05 + 0.05 * trial)
            writer.kill()
        found = right_of(TextCache("model", FOLDER), range(2000))
        assert found >= known
        known = found
    assert known > 0
    put(TextCache("model", FOLDER), range(5000, 5010))
    assert right_of(TextCache("model", FOLDER), range(5000, 5010)) == 10


# Where it is


def test_the_folder_is_that_of_the_variable_else_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "told"))
    assert cache_folder() == tmp_path / "told"
    assert TextCache("model").path.is_relative_to(tmp_path / "told")
    monkeypatch.setenv("ANNOTARY_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / "xdg" / "annotary"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "annotary"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library/Caches/annotary"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "annotary"


def test_users_without_a_home_go_without_a_cache(monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ANNOTARY_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    cache = TextCache("model")
    put(cache, range(3))
    assert right_of(cache, range(3)) == 0
