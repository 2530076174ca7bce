"""Archives, tables and shards as `annotary tag` takes them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from annotary.records import from_line
from annotary.sources._shard import Shard
from tests.conftest import child_environment


@pytest.fixture
def tagged(colours: Path, photos):
    """Calls `annotary tag` where a folder of photos lies beside a tar of them."""
    folder = photos(9)
    with tarfile.open("photos.tar", "w") as archive:
        archive.add(folder, arcname=".")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = (sys.executable, "-m", "annotary", "tag", *arguments, "--model", f"dir:{colours}")
        return subprocess.run(
            command,
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return call


def records(path: str) -> dict[str, dict[str, float]]:
    """Every image of a file of results and its tags; no image may be there twice."""
    lines = [from_line(line) for line in Path(path).read_text("utf-8").splitlines()]
    found = {line.image: {tag.name: tag.score for tag in line.tags} for line in lines}
    assert len(found) == len(lines)
    return found


def test_a_tar_is_done_as_its_folder_and_goes_on(tagged) -> None:
    options = ("--threshold", "0", "--quiet")
    assert tagged("photos", "--output", "folder.jsonl", *options).returncode == 0
    whole = Path("photos.tar").read_bytes()
    Path("photos.tar").write_bytes(whole[:5000])
    first = tagged("photos.tar", "--output", "tar.jsonl", *options)
    assert first.returncode == 1
    done = len(records("tar.jsonl"))
    assert 0 < done < 9
    (failure,) = map(json.loads, Path("tar.jsonl.failures.jsonl").read_text().splitlines())
    assert failure["image"] == "photos.tar"
    assert failure["message"].startswith(f"only {done} image")
    Path("photos.tar").write_bytes(whole)
    second = tagged("photos.tar", "--output", "tar.jsonl", *options[:-1])
    assert f"{9 - done} tagged" in second.stderr
    assert f"{done} done before" in second.stderr
    by_name = {
        name.removeprefix("photos.tar/"): tags for name, tags in records("tar.jsonl").items()
    }
    assert by_name == {
        name.removeprefix("photos/"): tags for name, tags in records("folder.jsonl").items()
    }


def test_sidecars_of_an_archive_lie_below_the_output(tagged) -> None:
    result = tagged("photos.tar", "--format", "txt", "--output", "tags", "--threshold", "0")
    assert result.returncode == 0, result.stderr
    assert len(list(Path("tags").glob("0000?.txt"))) == 9


def test_shards_are_the_whole_and_may_be_empty(tagged) -> None:
    for number in range(1, 4):
        result = tagged("photos.tar", "--shard", f"{number}/3", "--output", f"{number}.jsonl")
        assert result.returncode == 0, result.stderr
    Path("all.jsonl").write_text("".join(Path(f"{n}.jsonl").read_text() for n in range(1, 4)))
    assert len(records("all.jsonl")) == 9
    other = "2/2" if Shard(1, 2).has("00000.png") else "1/2"
    empty = tagged("photos/00000.png", "--shard", other, "--output", "empty.jsonl")
    assert empty.returncode == 0
    assert empty.stderr.startswith("0 tagged")


def test_a_table_and_its_column(tagged) -> None:
    file = io.StringIO()
    csv.writer(file).writerows([["id", "photo"], ["1", "photos/00003.png"]])
    Path("table.csv").write_text(file.getvalue())
    missing = tagged("table.csv")
    assert missing.returncode == 2
    assert missing.stderr == (
        "annotary: none of the columns of table.csv has a usual name for images; "
        "choose one with --image-column: 'id', 'photo'\n"
    )
    result = tagged("table.csv", "--image-column", "photo", "--output", "out.jsonl")
    assert result.returncode == 0, result.stderr
    assert list(records("out.jsonl")) == ["photos/00003.png"]


def test_what_is_no_shard(tagged) -> None:
    result = tagged("photos", "--shard", "3")
    assert result.returncode == 2
    message = "--shard must be like 2/8, the second of eight machines, but got '3'"
    assert result.stderr == f"annotary: {message}\n"


def test_a_video(tagged) -> None:
    Path("film.mp4").write_bytes(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(1000))
    result = tagged("film.mp4")
    assert result.returncode == 1
    assert "film.mp4: not an image that can be read: it looks like a video" in result.stderr
