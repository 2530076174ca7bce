"""Embeddings: a matrix and its table agree after any kill, and NumPy, pandas and pyarrow read them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotary.errors import MissingExtra, OutputError, UsageError
from annotary.pipeline.output import FileOutput
from annotary.records import Annotation, Embedding, Item, Tag
from annotary.sinks import SinkOptions, format_of, npy, open_sink, read_tags
from tests.conftest import child_environment
from tests.sinks.test_killed import kill_after

PART = ("embedding",)
NAMES = ["a.jpg", "b \n c.jpg", "犬/é.jpg", os.fsdecode(b"\xff.jpg")]
DIMENSION = 4


@pytest.fixture(params=["parquet", "jsonl"])
def kind(request, monkeypatch):
    """With pyarrow, and as if it were not installed."""
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    else:
        monkeypatch.setattr(npy, "find_spec", lambda _: None)
    return request.param


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of them take their time


def vector_of(name: str, dimension: int = DIMENSION) -> tuple[float, ...]:
    seed = int.from_bytes(os.fsencode(name)[:8].ljust(8, b"\0"), "little")
    row = np.random.default_rng(seed).normal(size=dimension)
    return tuple((row / np.linalg.norm(row)).tolist())


def annotation_of(name: str, dimension: int = DIMENSION) -> Annotation:
    embedding = Embedding(vector_of(name, dimension))
    return Annotation(name, 40, 30, embedding=embedding, sources={"embedding": "clip@1.0"})


def write(path: Path, names: list[str], *, complete: bool = True, **options) -> None:
    sink = open_sink("npy", path, SinkOptions(**options), PART)
    for name in names:
        item = Item(name, path=Path(name))
        if not sink.holds(item):
            sink.write(item, annotation_of(name))
    sink.close(complete=complete)


def left_by_a_kill(path: Path, names: list[str]) -> None:
    sink = open_sink("npy", path, SinkOptions(), PART)
    for name in names:
        sink.write(Item(name, path=Path(name)), annotation_of(name))
    sink._matrix.close()


def plain(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def rows_of(path: Path, kind: str) -> list[str]:
    """The images that the table names; none while there is no finished one."""
    place = path.with_suffix(f".{kind}")
    if not place.exists() or place.read_bytes().startswith(b"annotary has not finished"):
        return []
    if kind == "parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(place)["image"].to_pylist()
    return [plain(json.loads(line)["image"]) for line in place.read_bytes().splitlines()]


def check(path: Path, kind: str, names: list[str], dtype=np.float32) -> None:
    """Both files tell of these images, and each row is that of its image."""
    matrix = np.load(path, mmap_mode="r")
    assert matrix.dtype == dtype
    assert matrix.flags.c_contiguous
    assert rows_of(path, kind) == [plain(name) for name in names]
    assert len(matrix) == len(names)
    if names:
        expected = np.array([vector_of(name) for name in names], dtype)
        np.testing.assert_array_equal(matrix, expected)
        np.testing.assert_array_equal(np.load(path), expected)


def test_matrix_and_rows(tmp_path, kind):
    path = tmp_path / "vectors.npy"
    write(path, NAMES)
    check(path, kind, NAMES)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["vectors.npy", f"vectors.{kind}"])
    assert path.stat().st_size == 128 + len(NAMES) * DIMENSION * 4
    assert format_of(path) == "npy"


def test_half_precision(tmp_path, kind):
    path = tmp_path / "vectors.npy"
    write(path, NAMES, half=True)
    check(path, kind, NAMES, np.float16)
    with pytest.raises(OutputError, match="holds float16; say --half, or choose another"):
        write(path, NAMES)
    write(tmp_path / "full.npy", NAMES)
    with pytest.raises(OutputError, match="holds float32; leave --half out, or choose another"):
        write(tmp_path / "full.npy", NAMES, half=True)


@given(st.lists(st.lists(st.text(min_size=1, max_size=6), max_size=5), max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_any_number_of_runs(tmp_path, kind, runs):
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    path = tmp_path / "out" / "vectors.npy"
    surrogates = [[os.fsdecode(os.fsencode(n)) for n in run if "\0" not in n] for run in runs]
    for names in surrogates:
        write(path, names)
    expected = list(dict.fromkeys(name for run in surrogates for name in run))
    if surrogates:
        check(path, kind, expected)
    else:
        assert not path.exists()


def test_in_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    write(tmp_path / "vectors.npy", NAMES[:3])
    table = pandas.read_parquet(tmp_path / "vectors.parquet")
    assert list(table.columns) == ["image", "width", "height", "sources"]
    assert table["image"].tolist() == NAMES[:3]
    assert table["width"].tolist() == [40] * 3
    assert table["sources"][0].tolist() == [{"part": "embedding", "model": "clip@1.0"}]


def test_lines_in_pandas(tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")
    monkeypatch.setattr(npy, "find_spec", lambda _: None)
    write(tmp_path / "vectors.npy", NAMES[:3])
    table = pandas.read_json(tmp_path / "vectors.jsonl", lines=True)
    assert list(table.columns) == ["image", "width", "height", "sources"]
    assert table["image"].tolist() == NAMES[:3]


def test_a_killed_run_cut_anywhere_is_continued(tmp_path, kind):
    """Both files at every byte, the matrix of the second run as well as the journal."""
    path, journal = tmp_path / "vectors.npy", tmp_path / f"vectors.{kind}.part.jsonl"
    once = tmp_path / "once"
    once.mkdir()
    names = NAMES[:3]
    write(once / "vectors.npy", names)
    write(path, names[:1])
    finished = {place.name: place.read_bytes() for place in tmp_path.glob("vectors*")}
    left_by_a_kill(path, names[1:])
    check(path, kind, names[:1])  # what readers find meanwhile
    killed = {place.name: place.read_bytes() for place in tmp_path.glob("vectors*")}
    ends = [(end, None) for end in range(len(finished["vectors.npy"]), len(killed["vectors.npy"]))]
    ends += [(None, end) for end in range(len(killed[journal.name]) + 1)]
    for matrix_end, journal_end in ends:
        for name, content in killed.items():
            (tmp_path / name).write_bytes(content)
        path.write_bytes(killed["vectors.npy"][:matrix_end])
        journal.write_bytes(killed[journal.name][:journal_end])
        write(path, names)
        for place in once.iterdir():
            told = f"cut after {matrix_end} and {journal_end} bytes"
            assert (tmp_path / place.name).read_bytes() == place.read_bytes(), told
        assert not journal.exists()


def test_a_first_run_cut_anywhere_is_continued(tmp_path, kind):
    path, journal = tmp_path / "vectors.npy", tmp_path / f"vectors.{kind}.part.jsonl"
    left_by_a_kill(path, NAMES[:2])
    check(path, kind, [])
    killed = {place.name: place.read_bytes() for place in tmp_path.iterdir()}
    for end in range(len(killed["vectors.npy"])):
        for name, content in killed.items():
            (tmp_path / name).write_bytes(content)
        path.write_bytes(killed["vectors.npy"][:end])
        write(path, NAMES)
        check(path, kind, NAMES)
    assert not journal.exists()


def test_a_stop_after_each_step_of_the_end(tmp_path, kind, monkeypatch):
    """The table is made, but the journal is still there, or the header does not count yet."""
    path, journal = tmp_path / "vectors.npy", tmp_path / f"vectors.{kind}.part.jsonl"
    left_by_a_kill(path, NAMES[:3])
    matrix, records = path.read_bytes(), journal.read_bytes()
    write(path, [])
    check(path, kind, NAMES[:3])
    path.write_bytes(matrix)
    write(path, [])
    check(path, kind, NAMES[:3])
    path.write_bytes(matrix)
    journal.write_bytes(records)
    left_by_a_kill(path, NAMES[3:])  # adds to a journal whose first lines the table has
    write(path, NAMES)
    check(path, kind, NAMES)


def test_a_run_that_stops_ends_its_files(tmp_path, kind):
    path = tmp_path / "new" / "vectors.npy"
    write(path, [], complete=False)
    assert not path.parent.exists()
    write(path, NAMES[:2], complete=False)
    check(path, kind, NAMES[:2])
    write(path, NAMES)
    check(path, kind, NAMES)


def test_a_run_without_images(tmp_path, kind):
    path = tmp_path / "vectors.npy"
    write(path, [])
    assert np.load(path).shape == (0, 0)
    write(path, NAMES)
    check(path, kind, NAMES)


def test_what_is_no_embedding_of_this_matrix(tmp_path, kind):
    path = tmp_path / "vectors.npy"
    sink = open_sink("npy", path, SinkOptions(), PART)
    sink.write(Item("a", path=Path("a")), annotation_of("a"))
    with pytest.raises(OutputError, match="has rows of 4 numbers, and an embedding has 9"):
        sink.write(Item("b", path=Path("b")), annotation_of("b", 9))
    with pytest.raises(OutputError, match="b has no embedding"):
        sink.write(Item("b", path=Path("b")), Annotation("b", 1, 1))
    sink.close(complete=False)
    check(path, kind, ["a"])


def test_a_full_disk(tmp_path, kind, monkeypatch):
    path = tmp_path / "vectors.npy"
    sink = open_sink("npy", path, SinkOptions(), PART)
    sink.write(Item("a", path=Path("a")), annotation_of("a"))
    real = os.write
    for failing in ("matrix", "rows"):
        calls = iter([failing == "matrix", True])

        def write_some(descriptor, data, calls=calls):
            if next(calls):
                real(descriptor, bytes(data)[:5])
                raise OSError(28, "No space left on device")
            return real(descriptor, data)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write_some)
            with pytest.raises(OutputError, match="No space left on device; the same command"):
                sink.write(Item("b", path=Path("b")), annotation_of("b"))
    sink.write(Item("c", path=Path("c")), annotation_of("c"))
    sink.close(complete=True)
    check(path, kind, ["a", "c"])


@pytest.mark.parametrize(
    "content", [b"hello", b"\x93NUMPY\x01\x00v\x00{}", b"\x93NUMPY" + bytes(300)]
)
def test_a_file_of_something_else_is_left_alone(content, tmp_path, kind):
    path = tmp_path / "vectors.npy"
    path.write_bytes(content)
    with pytest.raises(OutputError, match=r"vectors\.npy holds something else"):
        write(path, NAMES)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((2, 3)),
        np.zeros((3, 2), np.float32).T,
        np.zeros(3, np.float32),
        np.zeros((2, 3), ">f4"),
    ],
)
def test_a_matrix_of_another_kind_is_left_alone(matrix, tmp_path, kind):
    path = tmp_path / "vectors.npy"
    np.save(path, matrix)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="holds something else"):
        write(path, NAMES)
    assert path.read_bytes() == before


def test_a_matrix_without_its_table_is_left_alone(tmp_path, kind):
    path = tmp_path / "vectors.npy"
    np.save(path, np.zeros((2, 3), np.float32))
    before = path.read_bytes()
    with pytest.raises(OutputError, match=f"has 2 rows and vectors.{kind} 0: one of them was"):
        write(path, NAMES)
    assert path.read_bytes() == before


def test_a_table_of_someone_else_is_left_alone(tmp_path, kind):
    form, table = (
        ("parquet", "vectors.parquet") if kind == "parquet" else ("jsonl", "vectors.jsonl")
    )
    sink = open_sink(form, tmp_path / table, SinkOptions())
    sink.write(Item("a", path=Path("a")), Annotation("a", 1, 1, tags=(Tag("x", 0.5),)))
    sink.close(complete=True)
    before = (tmp_path / table).read_bytes()
    with pytest.raises(OutputError, match=rf"{table} (has the columns|holds something else)"):
        write(tmp_path / "vectors.npy", NAMES)
    assert (tmp_path / table).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [table]


def test_a_table_whose_matrix_is_gone(tmp_path, kind):
    path = tmp_path / "vectors.npy"
    write(path, NAMES)
    path.unlink()
    with pytest.raises(OutputError, match=r"tells of the rows of vectors\.npy, which is gone"):
        write(path, NAMES)
    write(path, NAMES[:1], on_existing="overwrite")
    check(path, kind, NAMES[:1])


def test_pyarrow_may_come_and_go(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    with_lines, with_parquet = tmp_path / "a" / "v.npy", tmp_path / "b" / "v.npy"
    write(with_parquet, NAMES[:2])
    with monkeypatch.context() as patch:
        patch.setattr(npy, "find_spec", lambda _: None)
        write(with_lines, NAMES[:2])
        patch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(MissingExtra, match=r"'annotary\[parquet\]'"):
            write(with_parquet, NAMES)
    write(with_lines, NAMES)
    check(with_lines, "jsonl", NAMES)


def test_through_a_run_that_overwrites(tmp_path, kind):
    path = tmp_path / "vectors.npy"

    def run(names: list[str], model: str, **options) -> None:
        output = FileOutput(
            "npy", path, SinkOptions(**options), {"model": model}, retry_failed=False, parts=PART
        )
        for name in names:
            item = Item(name, path=Path(name))
            if output.standing(item) == "new":
                output.write(item, annotation_of(name))
        output.close(complete=True)

    run(NAMES[:3], "a")
    with pytest.raises(OutputError, match="model was 'a', now 'b'"):
        run(NAMES, "b")
    check(path, kind, NAMES[:3])
    run(NAMES[1:], "b", on_existing="overwrite")
    check(path, kind, NAMES[1:])


def test_names_and_parts_that_do_not_fit(tmp_path):
    for name in ("vectors.parquet", "vectors.jsonl"):
        with pytest.raises(UsageError, match=r"say NAME\.npy"):
            open_sink("npy", tmp_path / name, SinkOptions(), PART)
    with pytest.raises(UsageError, match="--format npy cannot hold tags; use caption, csv, "):
        open_sink("npy", tmp_path / "vectors.npy", SinkOptions())
    with pytest.raises(UsageError, match="npy cannot be read back"):
        read_tags("npy", tmp_path / "vectors.npy", SinkOptions())


WRITE_ALL = """
import sys
from pathlib import Path
import numpy as np
from annotary.records import Annotation, Embedding, Item
from annotary.sinks import SinkOptions, open_sink

path, count = Path(sys.argv[1]), int(sys.argv[2])
sink = open_sink("npy", path, SinkOptions(), ("embedding",))
for i in range(count):
    item = Item(f"{i}.jpg", path=Path(f"{i}.jpg"))
    if not sink.holds(item):
        vector = np.zeros(64)
        vector[i % 64] = 1
        sink.write(item, Annotation(item.image, 4, 3, embedding=Embedding(tuple(vector.tolist()))))
sink.close(complete=True)
"""


def test_killed_at_random_moments(tmp_path):
    pytest.importorskip("pyarrow")
    count, path = 3000, tmp_path / "vectors.npy"
    chance = np.random.default_rng(4)

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WRITE_ALL, str(path), str(count)]
        return subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE)

    for _ in range(3):
        kill_after(start(), path, int(chance.integers(1, 200_000)))
        if path.exists():
            assert len(np.load(path)) == len(rows_of(path, "parquet"))
    process = start()
    assert process.communicate(timeout=60)[1] == b""
    assert rows_of(path, "parquet") == [f"{i}.jpg" for i in range(count)]
    matrix = np.load(path, mmap_mode="r")
    assert matrix.shape == (count, 64)
    assert (matrix.argmax(axis=1) == np.arange(count) % 64).all()
    assert {p.name for p in tmp_path.iterdir()} == {"vectors.npy", "vectors.parquet"}
