"""Tables and tars whose writer is killed: nothing that was written is lost, and the run goes on."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from annotary.errors import OutputError
from annotary.pipeline.output import FileOutput
from annotary.records import Annotation, Item
from annotary.sinks import SinkOptions, open_sink
from tests.conftest import child_environment

WRITE_ALL = """
import sys
from pathlib import Path
from annotary.records import Annotation, Box, Item, Tag
from annotary.sinks import SinkOptions, open_sink

form, path, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
part = "boxes" if form in ("coco", "cvat") else "tags"
sink = open_sink(form, path, SinkOptions(), [part])
said = {"tags": (Tag("dog", 0.75, "animal"), Tag("grass", 0.5))}
for i in range(count):
    if part == "boxes":
        said = {"boxes": tuple(Box(f"class {n}", 0.5, (n, 1, n + 2, 9)) for n in range(i % 7))}
    name = f"photos/{i:05}.jpg"
    has_file = form != "webdataset"
    item = Item(name, path=Path(name)) if has_file else Item(name, data=b"\\xff\\xd8\\xff" * 99)
    if not sink.holds(item):
        sink.write(item, Annotation(name, 40, 30, **said, sources={part: "starter@1.0"}))
sink.close(complete=True)
"""


def start(form: str, path: Path, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITE_ALL, form, str(path), str(count)]
    return subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE)


def kill_after(process: subprocess.Popen[bytes], watched: Path, growth: int) -> None:
    """Kill a process when the file that it writes has grown by so much."""

    def size() -> int:
        return watched.stat().st_size if watched.exists() else 0

    goal, deadline = size() + growth, time.monotonic() + 30
    while size() < goal and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0002)
    process.kill()
    process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("parquet", "out.parquet"),
        ("webdataset", "out.tar"),
        ("kohya", "meta.json"),
        ("coco", "boxes.json"),
        ("cvat", "annotations.xml"),
    ],
)
def test_killed_at_random_moments(form, name, tmp_path):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    count = 3000
    path, once = tmp_path / name, tmp_path / "once" / name
    has_journal = form in ("parquet", "coco", "cvat")
    watched = tmp_path / f"{name}.part.jsonl" if has_journal else path
    chance = random.Random(form)
    for _ in range(3):
        kill_after(start(form, path, count), watched, chance.randrange(1, 100_000))
    process = start(form, path, count)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0
    process = start(form, once, count)
    assert process.communicate(timeout=60)[1] == b""
    assert path.read_bytes() == once.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "once"])


def opened(path: Path, threshold: float, **options) -> FileOutput:
    settings = {"threshold": threshold}
    return FileOutput("parquet", path, SinkOptions(**options), settings, retry_failed=False)


def killed_run(path: Path) -> None:
    """Write one record, and end as a killed process does: the lock goes, and nothing else happens."""
    output = opened(path, 0.5)
    output.write(Item("a.jpg", path=Path("a.jpg")), Annotation("a.jpg", 1, 1))
    assert output._state is not None
    output._state.release(complete=False)


def test_a_killed_parquet_run_is_not_continued_with_other_settings(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "out.parquet"
    killed_run(path)
    with pytest.raises(OutputError, match=r"threshold was 0\.5, now 0\.9"):
        opened(path, 0.9)
    output = opened(path, 0.5)
    assert output.standing(Item("a.jpg", path=Path("a.jpg"))) == "done"
    output.close(complete=True)


def test_a_killed_parquet_run_is_thrown_away_when_asked(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "out.parquet"
    killed_run(path)
    output = opened(path, 0.9, on_existing="overwrite")
    assert output.standing(Item("a.jpg", path=Path("a.jpg"))) == "new"
    output.close(complete=True)
    assert pq.read_table(path).num_rows == 0
    assert not (tmp_path / "out.parquet.part.jsonl").exists()


def test_a_killed_parquet_run_without_its_settings_is_not_touched(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "out.parquet"
    killed_run(path)
    (tmp_path / "out.parquet.run.json").unlink()
    for options in ({}, {"on_existing": "overwrite"}):
        with pytest.raises(OutputError, match="was not written by annotary"):
            opened(path, 0.5, **options)
    assert (tmp_path / "out.parquet.part.jsonl").read_bytes().count(b"\n") == 1


def test_a_run_that_is_stopped_leaves_a_table(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "out.parquet"
    sink = open_sink("parquet", path, SinkOptions())
    sink.write(Item("a.jpg", path=Path("a.jpg")), Annotation("a.jpg", 1, 1))
    sink.close(complete=False)
    assert pq.read_table(path)["image"].to_pylist() == ["a.jpg"]
