"""Every format: what it writes, what it recovers from any cut, what it refuses to touch."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotary.errors import OutputError, SidecarError, UnknownName, UsageError
from annotary.records import Annotation, Item, Tag, from_line
from annotary.sinks import SinkOptions, format_of, open_sink, read_tags, writes_one_file

FILES = ("jsonl", "json", "csv")

# Anything that a file may be called on Linux, lone surrogates of undecodable bytes among them.
file_names = (
    st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name).map(os.fsdecode)
)


def item_of(name: str) -> Item:
    return Item(name, path=Path(name))


def annotation_of(name: str) -> Annotation:
    tags = (Tag('dog, or "cat"', 0.75, "animal"), Tag("grass\nland", 0.5))
    return Annotation(name, 40, 30, tags=tags, sources={"tags": "starter@1.0"})


def write(form: str, path: Path, names: list[str]) -> None:
    sink = open_sink(form, path, SinkOptions())
    for name in names:
        if not sink.holds(item_of(name)):
            sink.write(item_of(name), annotation_of(name))
    sink.close(complete=True)


def as_written(name: str) -> str:
    """What a format without escapes makes of a name."""
    return name.encode("utf-8", "backslashreplace").decode()


def read(form: str, path: Path) -> list[str]:
    """Names by an independent reader; and the tags must be right."""
    if form == "csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert all(row["tags"] == 'dog, or "cat", grass\nland' for row in rows)
        assert all(row["scores"] == "0.75, 0.5" for row in rows)
        return [row["image"] for row in rows]
    if form == "jsonl":
        records = [from_line(line) for line in path.read_bytes().splitlines()]
    else:
        records = [Annotation.from_json(value) for value in json.loads(path.read_bytes())]
    assert records == [annotation_of(record.image) for record in records]
    return [as_written(record.image) for record in records]


@pytest.mark.parametrize("form", FILES)
@given(names=st.lists(file_names, unique_by=as_written, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_of_any_name(form, names, tmp_path):
    path = tmp_path / f"out.{form}"
    path.unlink(missing_ok=True)
    write(form, path, names)
    assert read(form, path) == [as_written(name) for name in names]


@pytest.mark.parametrize("form", FILES)
def test_a_file_cut_anywhere_is_continued(form, tmp_path):
    names = ["a.jpg", "b \n c.jpg", 'd".jpg', os.fsdecode(b"\xff.jpg")]
    path = tmp_path / f"out.{form}"
    write(form, path, names)
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        write(form, path, names)
        assert path.read_bytes() == whole, f"cut after {end} bytes"


@pytest.mark.parametrize("form", FILES)
def test_an_empty_run_writes_a_valid_file(form, tmp_path):
    path = tmp_path / "new" / f"out.{form}"
    write(form, path, [])
    assert read(form, path) == []


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("jsonl", "hello\nworld\n"),
        ("jsonl", '{"image": "a"}\n{"picture": "b"}\n{"image": "c"}\n'),
        ("json", '{"a": 1}\n'),
        ("json", '[\nhello,\n{"image": "a"}\n]\n'),
        ("csv", "name,tags\n"),
        ("csv", "image,width,height,tags,scores\na,b\n"),
        ("csv", 'image,width,height,tags,scores\na",1,1,x,0.5\nb,1,1,x,0.5\nc,1,1,x,0.5\n'),
        ("json", '[\n{"image": "a"},\n\n{"image": "b"}\n]\n'),
    ],
)
def test_a_file_of_something_else_is_left_alone(form, content, tmp_path):
    path = tmp_path / f"out.{form}"
    path.write_text(content)
    with pytest.raises(OutputError, match=r"out\."):
        open_sink(form, path, SinkOptions())
    assert path.read_text() == content


@pytest.mark.parametrize("form", FILES)
def test_a_place_that_cannot_be_written(form, tmp_path):
    (tmp_path / "file").write_text("")
    sink = open_sink(form, tmp_path / "out", SinkOptions())
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        sink.write(item_of("a"), annotation_of("a"))
    with pytest.raises(OutputError, match="cannot read"):
        open_sink(form, tmp_path / "file" / "out", SinkOptions())


def test_formats_by_suffix():
    assert format_of(Path("a/out.jsonl")) == "jsonl"
    assert format_of(Path("OUT.CSV")) == "csv"
    with pytest.raises(UsageError, match=r"'out\.xyz' names no format: use one of \.csv, "):
        format_of(Path("out.xyz"))
    with pytest.raises(UsageError, match="'out' has no suffix"):
        format_of(Path("out"))
    with pytest.raises(UnknownName, match="unknown format 'xyz'"):
        writes_one_file("xyz")
    assert not writes_one_file("txt")


# --- sidecars ---


def sidecar(item: Item, folder: Path | None = None, **options) -> None:
    annotation = Annotation(item.image, 1, 1, tags=(Tag("dog", 0.9), Tag("red", 0.8)))
    sink = open_sink("txt", folder, SinkOptions(**options))
    if not sink.holds(item):
        sink.write(item, annotation)


def test_a_sidecar_beside_the_image(tmp_path):
    sidecar(Item.from_path(tmp_path / "a.jpg"))
    assert (tmp_path / "a.txt").read_text() == "dog, red\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_sidecars_mirror_the_folder(tmp_path):
    sidecar(Item.from_path("photos/2024/a.b.jpg", "2024/a.b.jpg"), tmp_path / "tags")
    sidecar(Item("http://x/b/c.jpg", url="http://x/b/c.jpg"), tmp_path / "tags")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt")}
    assert found == {"tags/2024/a.b.txt", "tags/c.txt"}


def test_what_a_person_wrote_is_skipped_appended_to_or_overwritten(tmp_path):
    item = Item.from_path(tmp_path / "a.jpg")
    place = tmp_path / "a.txt"
    place.write_text("my dog, dog\n")
    sidecar(item)
    assert place.read_text() == "my dog, dog\n"
    sidecar(item, on_existing="append")
    sidecar(item, on_existing="append")
    assert place.read_text() == "my dog, dog, red\n"
    sidecar(item, on_existing="overwrite", separator=" | ")
    assert place.read_text() == "dog | red\n"


def test_a_sidecar_that_is_no_text_is_not_appended_to(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SidecarError, match="nothing is appended"):
        sidecar(Item.from_path(tmp_path / "a.jpg"), on_existing="append")
    assert (tmp_path / "a.txt").read_bytes() == b"\xff\xfe"


def test_two_images_do_not_share_a_sidecar(tmp_path):
    sink = open_sink("txt", None, SinkOptions(on_existing="overwrite"))
    first, second = (Item.from_path(tmp_path / name) for name in ("a.jpg", "a.png"))
    assert not any(sink.holds(item) for item in (first, second))
    sink.write(first, annotation_of(first.image))
    with pytest.raises(SidecarError, match="another image of this run wants the sidecar"):
        sink.write(second, annotation_of(second.image))
    for item in (first, second):
        sidecar(item, full_names=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "a.jpg.txt", "a.png.txt"}


def test_an_image_without_a_file_needs_a_folder():
    with pytest.raises(SidecarError, match="--output FOLDER"):
        sidecar(Item("http://x/a.jpg", url="http://x/a.jpg"))


def test_names_of_urls_do_not_leave_the_folder(tmp_path):
    for address in (
        "http://x/..",
        "http://x/a/../../",
        "http://x/..%2f..",
        "http://x/",
        "http://x/a\\..\\b",
        "http://x/a/.",
        "http://127.0.0.1",
        "http://x/" + "a" * 300,
    ):
        sidecar(Item(address, url=address), tmp_path / "tags", full_names=True)
    outside = set(tmp_path.rglob("*.txt")) - set((tmp_path / "tags").glob("*.txt"))
    assert not outside


def test_names_of_urls_tell_them_apart(tmp_path):
    addresses = ["http://x/i.php?id=1", "http://x/i.php?id=2", "http://x/i.php", "http://x/"]
    for address in addresses:
        sidecar(Item(address, url=address), tmp_path / "tags")
    assert len(list((tmp_path / "tags").glob("*.txt"))) == 4


def test_the_image_itself_is_never_overwritten(tmp_path):
    picture = tmp_path / "pic.txt"
    picture.write_bytes(b"pixels")
    with pytest.raises(SidecarError, match="the image itself"):
        sidecar(Item.from_path(picture), on_existing="overwrite")
    assert picture.read_bytes() == b"pixels"


def test_a_sidecar_whose_name_is_too_long_is_one_failure(tmp_path):
    with pytest.raises(SidecarError, match="File name too long"):
        sidecar(Item.from_path(tmp_path / ("a" * 249 + ".jpg")), full_names=True)


def test_a_link_is_written_through_and_keeps_its_mode(tmp_path):
    real = tmp_path / "real.cap"
    real.write_text("my dog\n")
    real.chmod(0o600)
    (tmp_path / "a.txt").symlink_to(real)
    sidecar(Item.from_path(tmp_path / "a.jpg"), on_existing="append")
    assert (tmp_path / "a.txt").is_symlink()
    assert real.read_text() == "my dog, dog, red\n"
    assert real.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "b.txt").mkdir()
    for mode in ("skip", "overwrite"):
        with pytest.raises(SidecarError, match="Is a directory"):
            sidecar(Item.from_path(tmp_path / "b.jpg"), on_existing=mode)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        sidecar(Item.from_path("b.jpg"), tmp_path / "file" / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"b.txt", "file"}


def test_an_empty_separator_is_refused():
    with pytest.raises(ValueError, match="separator must not be empty"):
        SinkOptions(separator="")
    with pytest.raises(ValueError, match="separator must be text that can be written"):
        SinkOptions(separator="\udcff")


@pytest.mark.parametrize(("written", "read"), [("|", ", "), (", ", "|"), (", ", " ")])
def test_a_separator_that_was_not_the_one_is_told(written, read, tmp_path):
    path = tmp_path / "out.csv"
    sink = open_sink("csv", path, SinkOptions(separator=written))
    tags = (Tag("red dog", 0.95), Tag("cat", 0.9))
    sink.write(item_of("a.jpg"), Annotation("a.jpg", 1, 1, tags=tags))
    sink.close(complete=True)
    with pytest.raises(OutputError) as caught:
        list(read_tags("csv", path, SinkOptions(separator=read)))
    assert str(caught.value) == (
        f"{path} cannot be read: {read!r} does not part the tags and scores of 'a.jpg';"
        " say the --separator that it was written with"
    )
