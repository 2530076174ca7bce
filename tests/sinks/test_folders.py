"""Folders of labels: safe names, nothing replaced, nothing twice, and runs that were killed go on."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from annotary.errors import ImageError, OutputError, SidecarError, UnreachableImage, UsageError
from annotary.pipeline.output import FileOutput
from annotary.records import Annotation, Decision, Item, Label, Reason
from annotary.sinks import (
    FolderNames,
    NameSet,
    SinkOptions,
    format_named,
    open_sink,
    place,
    read_tags,
    safe_name,
)
from annotary.sinks.folders import FolderSink
from tests.conftest import child_environment
from tests.sinks.test_killed import kill_after

PARTS = ("labels",)
RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{device}{number}" for device in ("com", "lpt") for number in "0123456789¹²³"
}


def jpeg(colour: int = 0) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 6), (colour, 0, 0)).save(encoded, "JPEG")
    return encoded.getvalue() + bytes([colour])  # which no decoder reads


def annotation_of(name: str, *labels: str) -> Annotation:
    found = tuple(Label(label, 0.9 / (rank + 1)) for rank, label in enumerate(labels))
    return Annotation(name, 8, 6, labels=found, sources={"labels": "clip@1.0"})


def write(
    output: Path, images: list[tuple[str, bytes, str]], *, complete: bool = True, **options
) -> None:
    """Write images by their names below `photos/`, their bytes and their labels."""
    sink = open_sink("folders", output, SinkOptions(**options), PARTS)
    for name, data, label in images:
        item = Item(f"photos/{name}", data=data, relative=name)
        if not sink.holds(item):
            sink.write(item, annotation_of(item.image, label))
    sink.close(complete=complete)


def files_in(output: Path) -> dict[str, bytes]:
    """All files but the list, by their places."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name != "labels.jsonl"
    }


def listed(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "labels.jsonl").read_bytes().splitlines()]


# --- the names of folders and files ---


@given(st.text(max_size=300))
@settings(max_examples=300)
def test_a_safe_name_is_one_everywhere(text):
    name = safe_name(text)
    assert 0 < len(name.encode()) <= 201
    assert not re.search(r'[\x00-\x1f\x7f<>:"/\\|?*]', name)
    assert name[0] not in ". "
    assert name[-1] not in ". "
    assert name.split(".")[0].casefold() not in RESERVED
    assert unicodedata.normalize("NFC", name) == name
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dog", "dog"),
        ("polar bear", "polar bear"),
        ("犬", "犬"),
        ("a/b\\c", "a_b_c"),
        ("..", "__"),
        (".git", "_git"),
        ("con", "con_"),
        ("NUL.txt", "NUL_.txt"),
        ("console", "console"),
        ("dog. ", "dog"),
        ("", "_"),
        ("\ud800", "_"),
        ("what?", "what_"),
        ("e\u0301", "é"),
    ],
)
def test_safe_names(text, name):
    assert safe_name(text) == name


@given(st.lists(st.text(max_size=20), unique=True, max_size=20))
def test_each_text_has_a_folder_of_its_own(texts):
    names = FolderNames("labels.jsonl")
    found = [names.name_of(text) for text in texts]
    folded = {unicodedata.normalize("NFC", name.casefold()) for name in found}
    assert len(folded) == len(texts)
    assert "labels.jsonl" not in folded
    assert [names.name_of(text) for text in texts] == found


def test_labels_that_differ_in_case_have_two_folders(tmp_path):
    images = [("a.jpg", jpeg(), "Dog"), ("b.jpg", jpeg(), "dog"), ("c.jpg", jpeg(), "a/b")]
    images += [("d.jpg", jpeg(), "a_b"), ("e.jpg", jpeg(), "labels.jsonl")]
    write(tmp_path / "once", images)
    for end in range(1, len(images) + 1):  # as often as that, a new process
        write(tmp_path / "often", images[:end])
    assert files_in(tmp_path / "once") == files_in(tmp_path / "often")
    folders = [row["file"].rpartition("/")[0] for row in listed(tmp_path / "once")]
    assert folders[0] == "Dog"
    assert re.fullmatch(r"dog-[0-9a-f]{8}", folders[1])
    assert folders[2] == "a_b"
    assert re.fullmatch(r"a_b-[0-9a-f]{8}", folders[3])
    assert re.fullmatch(r"labels\.jsonl-[0-9a-f]{8}", folders[4])


def test_two_images_of_one_name_are_both_kept(tmp_path):
    images = [(f"{year}/IMG{end}", jpeg(), "dog") for year in (1, 2, 3) for end in (".jpg", ".JPG")]
    write(tmp_path / "once", images)
    for end in range(1, len(images) + 1):
        write(tmp_path / "often", images[:end])
    assert len(files_in(tmp_path / "once")) == 6
    assert files_in(tmp_path / "once") == files_in(tmp_path / "often")
    names = [row["file"] for row in listed(tmp_path / "once")]
    assert names[0] == "dog/IMG.jpg"
    assert all(re.fullmatch(r"dog/IMG-[0-9a-f]{8}\.(jpg|JPG)", name) for name in names[1:])
    assert len({name.casefold() for name in names}) == 6


def test_an_address_gets_the_suffix_of_its_image(tmp_path):
    sink = open_sink("folders", tmp_path, SinkOptions(), PARTS)
    for address in ("http://x/i.php?id=1", "http://x/", "http://x/b.PNG", "http://x/..%2f"):
        sink.write(Item(address, data=jpeg()), annotation_of(address, "dog"))
    sink.close(complete=True)
    names = sorted(path.name for path in (tmp_path / "dog").iterdir())
    assert len(names) == 4
    assert [name for name in names if not name.endswith(".jpg")] == ["b.PNG"]


# --- what is written ---


def test_images_and_their_list(tmp_path):
    assert format_named("folders").needs_bytes
    output = tmp_path / "sorted"
    sink = open_sink("folders", output, SinkOptions(), PARTS)
    first = Item("photos/2024/a.jpg", data=jpeg(1), relative="2024/a.jpg")
    sink.write(first, annotation_of(first.image, "dog", "cat"))
    second = Item("photos/b.jpg", data=jpeg(2), relative="b.jpg")
    sink.write(second, annotation_of(second.image))
    assert sink.holds(first)
    sink.close(complete=True)
    assert files_in(output) == {"dog/a.jpg": jpeg(1), "_unlabelled/b.jpg": jpeg(2)}
    assert listed(output)[0] == {
        "image": "photos/2024/a.jpg",
        "file": "dog/a.jpg",
        "width": 8,
        "height": 6,
        "labels": [{"name": "dog", "score": 0.9}, {"name": "cat", "score": 0.45}],
        "sources": {"labels": "clip@1.0"},
    }
    tags = [tags for _, tags in read_tags("folders", output, SinkOptions())]
    assert tags == [(("dog", 0.9), ("cat", 0.45)), ()]


def test_what_a_policy_decides_stands_above_the_label(tmp_path):
    reason = Reason("gore", 0.9, 0.5, "block")
    found = Annotation(
        "a", 8, 6, labels=(Label("gore", 0.9),), decision=Decision("block", (reason,))
    )
    for parts, expected in ((("labels", "decision"), "block/gore"), (("decision",), "block")):
        output = tmp_path / expected.replace("/", "-")
        sink = open_sink("folders", output, SinkOptions(), parts)
        sink.write(Item("a", data=jpeg()), found)
        sink.close(complete=True)
        assert list(files_in(output)) == [f"{expected}/a.jpg"]


def test_folders_that_a_caller_chooses(tmp_path):
    """As a split dataset has them: the class has the same name in each split."""
    sink = FolderSink(
        tmp_path, SinkOptions(), lambda item, found: (item.relative[:3], found.labels[0].name)
    )
    for split in ("val", "tra"):
        for label in ("Dog", "dog"):
            item = Item(f"{split}/{label}.jpg", data=jpeg(), relative=f"{split}-{label}.jpg")
            sink.write(item, annotation_of(item.image, label))
    sink.close(complete=True)
    folders = {path.parent.name for path in tmp_path.rglob("*.jpg")}
    assert len(folders) == 2
    for split in ("val", "tra"):
        assert {path.name for path in (tmp_path / split).iterdir()} == folders
    again = FolderSink(tmp_path, SinkOptions(), lambda item, found: ("new", found.labels[0].name))
    again.write(Item("z.jpg", data=jpeg()), annotation_of("z.jpg", "dog"))
    assert (tmp_path / "new" / (folders - {"Dog"}).pop() / "z.jpg").is_file()


def test_torchvision_and_datasets_read_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    output = tmp_path / "sorted"
    write(
        output, [("a.jpg", jpeg(250), "cat"), ("b.jpg", jpeg(1), "dog"), ("c.jpg", jpeg(2), "dog")]
    )
    table = datasets.load_dataset(
        "imagefolder", data_dir=str(output), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert table.features["label"].names == ["cat", "dog"]
    assert sorted(table["label"]) == [0, 1, 1]


# --- copies and links ---


def original(tmp_path: Path, name: str = "a.jpg") -> Item:
    path = tmp_path / "photos" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(jpeg())
    return Item.from_path(path)


def test_links(tmp_path):
    item = original(tmp_path)
    for placing in ("hardlink", "symlink", "copy"):
        options = SinkOptions(placing=placing)
        for _ in range(2):  # what is there is taken for it
            placed = place(item, tmp_path / placing, options)
        assert list((tmp_path / placing).iterdir()) == [placed]
        assert placed.read_bytes() == jpeg()
        assert placed.is_symlink() == (placing == "symlink")
        assert placed.samefile(item.path) == (placing != "copy")
    assert format_named("folders").options == ("placing",)


def test_only_copies_need_the_bytes(tmp_path):
    def needs(placing: str) -> bool:
        place, options = tmp_path / placing, SinkOptions(placing=placing)
        output = FileOutput("folders", place, options, {}, retry_failed=False, parts=PARTS)
        output.close(complete=False)
        return output.needs_bytes

    assert [needs(placing) for placing in ("copy", "hardlink", "symlink")] == [True, False, False]


def test_what_cannot_be_linked(tmp_path, monkeypatch):
    item = Item("http://x/a.jpg", url="http://x/a.jpg")
    for placing in ("hardlink", "symlink"):
        with pytest.raises(SidecarError, match="no file that can be linked to; say --placing copy"):
            place(item, tmp_path, SinkOptions(placing=placing))
    with pytest.raises(ImageError, match="came without its bytes"):
        place(item, tmp_path, SinkOptions())
    with pytest.raises(UnreachableImage, match="No such file"):
        place(Item.from_path(tmp_path / "gone.jpg"), tmp_path, SinkOptions())

    def other_disk(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    with pytest.raises(OutputError, match="Invalid cross-device link; say --placing copy"):
        place(original(tmp_path), tmp_path, SinkOptions(placing="hardlink"))


@pytest.mark.parametrize("placing", ["copy", "hardlink", "symlink"])
def test_what_is_there_is_never_replaced(placing, tmp_path):
    item = original(tmp_path)
    folder = tmp_path / "dog"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"mine")
    placed = place(item, folder, SinkOptions(placing=placing))
    assert re.fullmatch(r"a-[0-9a-f]{8}\.jpg", placed.name)
    assert (folder / "a.jpg").read_bytes() == b"mine"
    assert place(item, folder, SinkOptions(placing=placing)) == placed
    assert len(list(folder.iterdir())) == 2
    assert item.path.read_bytes() == jpeg()


def test_the_same_content_twice_has_two_files_when_places_are_taken(tmp_path):
    taken = NameSet()
    first, second = (Item(f"{n}/a.jpg", data=jpeg(), relative=f"{n}/a.jpg") for n in (1, 2))
    assert place(first, tmp_path, SinkOptions(), taken) != place(
        second, tmp_path, SinkOptions(), taken
    )
    assert place(first, tmp_path, SinkOptions()) == place(second, tmp_path, SinkOptions())


def test_a_full_disk_leaves_no_part(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    item = original(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(OutputError, match="No space left on device; the same command"):
            place(item, tmp_path / "dog", SinkOptions())
    assert list((tmp_path / "dog").iterdir()) == []
    place(item, tmp_path / "dog", SinkOptions())


def test_names_that_are_too_long(tmp_path):
    name = "é" * 110 + ".jpg"
    placed = [
        place(Item(f"{n}/{name}", data=jpeg(n), relative=f"{n}/{name}"), tmp_path, SinkOptions())
        for n in range(3)
    ]
    assert len({path.name for path in placed}) == 3
    assert all(path.suffix == ".jpg" and len(path.name.encode()) <= 201 for path in placed)


# --- runs ---


def test_a_list_cut_anywhere_is_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    output = tmp_path / "sorted"
    images = [("1/a.jpg", jpeg(1), "dog"), ("2/a.jpg", jpeg(2), "Dog"), ("3/a.jpg", jpeg(1), "dog")]
    write(output, images)
    whole, files = (output / "labels.jsonl").read_bytes(), files_in(output)
    for end in range(len(whole) + 1):
        (output / "labels.jsonl").write_bytes(whole[:end])
        write(output, images)
        assert (output / "labels.jsonl").read_bytes() == whole, f"cut after {end} bytes"
        assert files_in(output) == files


def test_what_is_there_and_whole_is_not_copied_again(tmp_path):
    output = tmp_path / "sorted"
    write(output, [("a.jpg", jpeg(), "dog")])
    before = (output / "dog" / "a.jpg").stat()
    (output / "labels.jsonl").write_bytes(
        b""
    )  # as if the process had been killed before it was listed
    write(output, [("a.jpg", jpeg(), "dog")])
    assert (output / "dog" / "a.jpg").stat().st_ino == before.st_ino
    assert (output / "dog" / "a.jpg").stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    "line",
    ["hello", '{"image": "a"}', '{"image": "a", "file": "../a"}', '{"image": "a", "file": "/a"}',
     '{"image": "a", "file": "b/a", "folder": []}', '{"image": 1, "file": "a"}', '[]'],
)  # fmt: skip
def test_a_list_of_something_else_is_left_alone(line, tmp_path):
    (tmp_path / "labels.jsonl").write_text(line + "\n")
    for on_existing in ("skip", "overwrite"):
        with pytest.raises(OutputError, match=r"labels\.jsonl cannot be continued: line 1 says of"):
            write(tmp_path, [("a.jpg", jpeg(), "dog")], on_existing=on_existing)
    assert files_in(tmp_path) == {}


def test_what_only_looks_like_a_list_has_nothing_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.jpg").write_bytes(b"mine")
    line = {"image": "a", "file": "mine/a.jpg", "width": 1, "height": 1, "author": "me"}
    for _ in range(2):
        (tmp_path / "labels.jsonl").write_text(json.dumps(line) + "\n")
        with pytest.raises(
            OutputError, match=r"labels\.jsonl (was not written by annotary|cannot)"
        ):
            write(tmp_path, [("a.jpg", jpeg(), "dog")], on_existing="overwrite")
        assert files_in(tmp_path) == {"mine/a.jpg": b"mine"}
        line.pop("width", None)


def test_nothing_is_removed_before_a_run_begins(tmp_path):
    output = tmp_path / "photos" / "sorted"
    write(output, [("a.jpg", jpeg(), "dog")])
    sink = open_sink("folders", output, SinkOptions(on_existing="overwrite"), PARTS)
    with pytest.raises(UsageError, match="which is read"):
        sink.protect([tmp_path / "photos"])
    sink.close(complete=False)
    assert files_in(output) == {"dog/a.jpg": jpeg()}


def test_overwriting_removes_what_is_listed_and_nothing_else(tmp_path):
    output = tmp_path / "sorted"
    write(output, [("a.jpg", jpeg(1), "dog"), ("b.jpg", jpeg(2), "cat"), ("c.jpg", jpeg(3), "x/y")])
    (output / "dog" / "mine.jpg").write_bytes(b"mine")
    write(output, [("a.jpg", jpeg(1), "cow")], on_existing="overwrite")
    assert files_in(output) == {"dog/mine.jpg": b"mine", "cow/a.jpg": jpeg(1)}
    assert sorted(path.name for path in output.iterdir()) == ["cow", "dog", "labels.jsonl"]


def test_links_are_removed_and_not_what_they_lead_to(tmp_path):
    item = original(tmp_path)
    for placing in ("hardlink", "symlink"):
        output = tmp_path / placing
        sink = open_sink("folders", output, SinkOptions(placing=placing), PARTS)
        sink.write(item, annotation_of(item.image, "dog"))
        sink.close(complete=True)
        write(output, [], on_existing="overwrite")
        assert files_in(output) == {}
        assert item.path.read_bytes() == jpeg()


def test_a_folder_that_is_read_is_not_filled(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "link").symlink_to(photos)
    for inputs in ([photos], [tmp_path / "link"], ["-", tmp_path]):
        sink = open_sink("folders", photos / "sorted", SinkOptions(), PARTS)
        with pytest.raises(UsageError, match=r"lies in .*, which is read; choose another --output"):
            sink.protect(inputs)
    sink.protect([tmp_path / "other", "http://x/", photos / "sorted2"])


def test_it_needs_a_folder():
    with pytest.raises(UsageError, match="folders needs --output FOLDER"):
        open_sink("folders", None, SinkOptions(), PARTS)
    with pytest.raises(UsageError, match="folders cannot hold tags"):
        open_sink("folders", Path("x"), SinkOptions())
    with pytest.raises(ValueError, match="placing must be one of copy, hardlink, symlink"):
        SinkOptions(placing="move")


@given(st.lists(st.tuples(st.text(min_size=1), st.integers(0, 2)), unique=True, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_any_label_and_any_file(tmp_path, found):
    output = tmp_path / "sorted"
    shutil.rmtree(output, ignore_errors=True)
    images = [(f"{number}/{label}.jpg", b"\xff\xd8\xff" + label.encode("utf-8", "replace"), label)
              for label, number in found]  # fmt: skip
    write(output, images[:3])
    write(output, images)
    rows = listed(output)
    assert len(rows) == len({name for name, *_ in images})
    by_name = {f"photos/{name}": (data, label) for name, data, label in images}
    for row in rows:
        data, label = by_name[row["image"]]
        path = output / row["file"]
        assert path.read_bytes() == data
        assert row["labels"][0]["name"] == label
        assert len(Path(row["file"]).parts) == 2
    assert len(files_in(output)) == len(rows)


WRITE_ALL = """
import sys
from pathlib import Path
from annotary.records import Annotation, Item, Label
from annotary.sinks import SinkOptions, open_sink

sink = open_sink("folders", Path(sys.argv[1]), SinkOptions(), ("labels",))
for i in range(int(sys.argv[2])):
    item = Item(f"photos/{i}.jpg", data=b"\\xff\\xd8\\xff%d" % i, relative=f"{i}/{i % 9}.jpg")
    if not sink.holds(item):
        labels = (Label(("Dog", "dog", "cat")[i % 3], 0.5),)
        sink.write(item, Annotation(item.image, 4, 3, labels=labels))
sink.close(complete=True)
"""


def test_killed_at_random_moments(tmp_path):
    count, output, once = 1000, tmp_path / "sorted", tmp_path / "once"
    chance = random.Random(4)

    def start(place: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WRITE_ALL, str(place), str(count)]
        return subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE)

    for _ in range(3):
        kill_after(start(output), output / "labels.jsonl", chance.randrange(1, 30_000))
    for folder in (output, once):
        process = start(folder)
        assert process.communicate(timeout=60)[1] == b""
    assert (output / "labels.jsonl").read_bytes() == (once / "labels.jsonl").read_bytes()
    hidden = {
        name for name in files_in(output) if "/.annotary-" in name
    }  # of what was not finished
    assert {k: v for k, v in files_in(output).items() if k not in hidden} == files_in(once)
    assert len(hidden) <= 3
    assert len(files_in(once)) == count
