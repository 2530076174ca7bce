"""Tars of images with their records: what readers of WebDataset find, and that a tar cut anywhere is continued."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from annotary import registry
from annotary.errors import ImageError, OutputError, UsageError
from annotary.records import Annotation, Item, Tag, from_line
from annotary.sinks import NameSet, SinkOptions, open_sink
from annotary.sinks.webdataset import TarSamples
from tests.conftest import child_environment

file_names = (
    st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name).map(os.fsdecode)
)
paths = st.text(st.sampled_from("ab.é_/\\: \n"), min_size=1, max_size=120)


def picture(form: str = "JPEG", colour: int = 0) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 6), (colour, 0, 0)).save(encoded, form)
    return encoded.getvalue()


def item_of(name: str, data: bytes = b"\xff\xd8\xffsome", relative: str | None = None) -> Item:
    return Item(name, data=data, relative=name if relative is None else relative)


def annotation_of(name: str) -> Annotation:
    tags = (Tag('dog, or "cat"', 0.75, "animal"), Tag("grass", 0.5))
    return Annotation(name, 8, 6, tags=tags, sources={"tags": "starter@1.1"})


def write(path: Path, items: list[Item], *, complete: bool = True) -> None:
    sink = open_sink("webdataset", path, SinkOptions())
    for item in items:
        if not sink.holds(item):
            sink.write(item, annotation_of(item.image))
    sink.close(complete=complete)


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        names = [member.name for member in members]
        assert len(set(names)) == len(names)
        assert all((m.mtime, m.uid, m.gid, m.uname, m.gname) == (0, 0, 0, "", "") for m in members)
        return {member.name: tar.extractfile(member).read() for member in members}


def samples_of(path: Path) -> list[dict]:
    """As the library that gave the format its name groups them."""
    tariterators = pytest.importorskip("webdataset").tariterators
    with path.open("rb") as file:
        members = tariterators.tar_file_expander([{"url": path.name, "stream": file}])
        return list(tariterators.group_by_keys(members))


def test_a_sample_holds_the_image_its_record_and_its_tags(tmp_path):
    path = tmp_path / "out.tar"
    item = item_of("photos/2024.05/dog.v2.JPG", picture("PNG"), "2024.05/dog.v2.JPG")
    write(path, [item])
    members = members_of(path)
    assert list(members) == ["2024_05/dog_v2.png", "2024_05/dog_v2.json", "2024_05/dog_v2.txt"]
    assert members["2024_05/dog_v2.png"] == item.data
    assert from_line(members["2024_05/dog_v2.json"]) == annotation_of(item.image)
    assert members["2024_05/dog_v2.txt"] == b'dog, or "cat", grass'


def test_webdataset_reads_it(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "out.tar"
    data = [picture("JPEG", 200), picture("PNG", 100)]
    write(path, [item_of("a/x.jpg", data[0]), item_of("a/x.png", data[1])])
    raw = samples_of(path)
    assert [sample["__key__"] for sample in raw] == ["a/x", "a/x_png"]
    assert (raw[0]["jpg"], raw[1]["png"]) == tuple(data)
    decode = webdataset.autodecode.Decoder([webdataset.imagehandler("pil")])
    for sample, suffix in zip(map(decode, raw), ("jpg", "png"), strict=True):
        assert sample[suffix].size == (8, 6)
        assert sample["json"]["tags"][0]["name"] == 'dog, or "cat"'
        assert sample["txt"] == 'dog, or "cat", grass'


def test_datasets_reads_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    path = tmp_path / "out.tar"
    write(path, [item_of(f"{i}.jpg", picture(colour=i)) for i in range(3)])
    table = datasets.load_dataset(
        "webdataset", data_files=str(path), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert table["__key__"][:] == ["0", "1", "2"]
    assert table[1]["jpg"].size == (8, 6)
    assert table[1]["json"]["image"] == "1.jpg"


@given(st.lists(file_names, unique=True, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_comes_back_and_is_held(tmp_path, names):
    path = tmp_path / "out.tar"
    path.unlink(missing_ok=True)
    write(path, [item_of(name) for name in names])
    records = [data for member, data in members_of(path).items() if member.endswith(".json")]
    assert [from_line(record).image for record in records] == names
    sink = open_sink("webdataset", path, SinkOptions())
    assert all(sink.holds(item_of(name)) for name in names)
    assert not sink.holds(item_of("another name"))
    samples = samples_of(path)
    assert [json.loads(sample["json"])["image"] for sample in samples] == names


@given(st.lists(paths, unique=True, min_size=1, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_keys_are_unique_plain_and_do_not_leave_a_folder(tmp_path, relatives):
    path = tmp_path / "out.tar"
    path.unlink(missing_ok=True)
    write(path, [item_of(f"photos/{name}", relative=name) for name in relatives])
    keys = [sample["__key__"] for sample in samples_of(path)]
    assert len(set(keys)) == len(relatives)
    for key in keys:
        assert re.fullmatch(r"[^/.\\:\n]+(/[^/.\\:\n]+)*", key)
        assert not key.startswith("__")
    assert [len(sample) for sample in samples_of(path)] == [5] * len(keys)


AWKWARD = ["a.jpg", 'b "\n.jpg', os.fsdecode(b"\xff.jpg")]


def test_a_tar_cut_at_any_byte_has_its_whole_samples(tmp_path):
    path = tmp_path / "out.tar"
    ends = []
    for name in AWKWARD:
        write(path, [item_of(name)])
        ends.append(path.stat().st_size - 1024)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        found = list(TarSamples(NameSet()).recover(io.BytesIO(whole[:size])))
        expected = zip(AWKWARD, ends, strict=True)
        assert found == [(name, end) for name, end in expected if end <= size], size


def test_a_tar_cut_anywhere_is_continued(tmp_path):
    path = tmp_path / "out.tar"
    items = [item_of(name) for name in AWKWARD]
    write(path, items)
    whole = path.read_bytes()
    blocks = range(0, len(whole), 512)
    for end in {*blocks, *(block + 1 for block in blocks), *range(0, len(whole), 101)}:
        path.write_bytes(whole[:end])
        write(path, items)
        assert path.read_bytes() == whole, f"cut after {end} bytes"


def test_a_run_that_is_killed_leaves_whole_samples(tmp_path):
    path = tmp_path / "out.tar"
    sink = open_sink("webdataset", path, SinkOptions())
    for name in ("a.jpg", "b.jpg"):
        sink.write(item_of(name), annotation_of(name))
    assert [sample["__key__"] for sample in samples_of(path)] == ["a", "b"]
    items = [item_of(name) for name in ("a.jpg", "b.jpg", "c.jpg")]
    write(path, items)
    write(tmp_path / "once.tar", items)
    assert path.read_bytes() == (tmp_path / "once.tar").read_bytes()


def test_a_tail_of_zeros_that_a_crash_left_is_cut_off(tmp_path):
    path, once = tmp_path / "out.tar", tmp_path / "once.tar"
    items = [item_of("a.jpg"), item_of("b.jpg")]
    write(path, items[:1], complete=False)
    path.write_bytes(path.read_bytes() + bytes(3333))
    write(path, items)
    write(once, items)
    assert path.read_bytes() == once.read_bytes()


def test_keys_are_not_taken_again_by_the_next_run(tmp_path):
    path = tmp_path / "out.tar"
    for name in ("one/x.jpg", "two/x.jpg", "three/x.jpg", "four/x.jpg"):
        write(path, [item_of(name, relative="x.jpg")])
    keys = [name.removesuffix(".txt") for name in members_of(path) if name.endswith(".txt")]
    assert keys[:2] == ["x", "x_jpg"]
    assert all(re.fullmatch(r"x_[0-9a-f]{16}", key) for key in keys[2:])
    assert len(set(keys)) == 4


def test_a_path_that_is_too_long_for_a_plain_tar_is_shortened(tmp_path):
    path = tmp_path / "out.tar"
    names = ["é" * 200 + ".jpg", "a/" * 150 + "b.jpg"]
    write(path, [item_of(name) for name in names])
    keys = [sample["__key__"] for sample in samples_of(path)]
    assert [key[: key.index("_")] for key in keys] == ["é" * 30, "b"]
    assert [json.loads(sample["json"])["image"] for sample in samples_of(path)] == names
    write(path, [item_of(name) for name in names])
    assert len(samples_of(path)) == 2


@pytest.mark.parametrize(
    ("start", "name", "suffix"),
    [
        (picture("WEBP"), "a.jpg", "webp"),
        (picture("GIF"), "a", "gif"),
        (picture("BMP"), "a", "bmp"),
        (picture("TIFF"), "a", "tiff"),
        (picture("PPM"), "a", "ppm"),
        (picture("AVIF"), "a", "avif"),
        (b"\0\0\0\x18ftypheic", "a.jpg", "heic"),
        (b"\0\0\0\x0cJXL \r\n", "a", "jxl"),
        (b"?", "a.TGA", "tga"),
        (b"?", "a.txt", "bin"),
        (b"?", "a", "bin"),
        (b"?", "a.json", "bin"),
        (b"?", "a.strange suffix", "bin"),
    ],
)
def test_the_suffix_is_that_of_the_content(tmp_path, start, name, suffix):
    path = tmp_path / "out.tar"
    write(path, [item_of(name, start)])
    assert next(iter(members_of(path))).rpartition(".")[2] == suffix


def test_addresses_become_keys(tmp_path):
    path = tmp_path / "out.tar"
    for name in (
        "https://x.org/a/b.jpg",
        "https://x.org/a/b.jpg?size=2",
        "https://x.org/",
        "stdin",
    ):
        write(path, [item_of(name, relative="")])
    keys = [name.removesuffix(".txt") for name in members_of(path) if name.endswith(".txt")]
    assert keys == ["x_org/a/b", "x_org/a/b_jpg_size=2", "x", "stdin"]


def test_pixels_alone_are_one_failure(tmp_path):
    import numpy as np

    sink = open_sink("webdataset", tmp_path / "out.tar", SinkOptions())
    item = Item("array", pixels=np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ImageError, match="without its bytes"):
        sink.write(item, annotation_of("array"))
    sink.close(complete=False)
    assert not (tmp_path / "out.tar").exists()


def test_a_tar_of_nothing_is_a_tar(tmp_path):
    write(tmp_path / "new" / "out.tar", [])
    assert members_of(tmp_path / "new" / "out.tar") == {}
    assert samples_of(tmp_path / "new" / "out.tar") == []


def foreign(names: list[str]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return archive.getvalue()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"hello" * 300, "no file of a tar at byte 0"),
        (foreign(["a.jpg", "b.jpg"]), "no part of a sample"),
        (foreign(["a.jpg", "a.txt"]), "no part of a sample"),
        (foreign(["a.jpg", "a.json"]), "no record of an image"),
        (bytes(1024) + b"more", "ends at byte 0, and there is more"),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path, content, why):
    path = tmp_path / "out.tar"
    path.write_bytes(content)
    with pytest.raises(OutputError, match=why):
        open_sink("webdataset", path, SinkOptions())
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["out-%06d.tar", "out-{000..009}.tar"])
def test_a_pattern_of_names_is_refused(name):
    with pytest.raises(UsageError, match="one a run"):
        open_sink("webdataset", Path(name), SinkOptions())


def test_the_command_puts_the_bytes_of_files_in_it(tmp_path, colours, photos):
    folder = photos(3)
    Path("broken.png").write_bytes(b"?")
    command = [sys.executable, "-m", "annotary", "tag", folder, "broken.png", "--output", "out.tar"]
    result = subprocess.run(
        [*command, "--model", f"dir:{colours}", "--separator", ","],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, "3 tagged" in result.stderr) == (1, True), result.stderr
    samples = samples_of(Path("out.tar"))
    assert [sample["__key__"] for sample in samples] == ["00000", "00001", "00002"]
    for sample in samples:
        assert sample["png"] == (folder / f"{sample['__key__']}.png").read_bytes()
        record = from_line(sample["json"])
        assert record.image == str(folder / f"{sample['__key__']}.png")
        assert sample["txt"].decode() == ",".join(tag.name for tag in record.tags)


def test_annotary_reads_it_again(tmp_path):
    if "webdataset" not in registry.names("sources"):
        pytest.skip("there is no source of this format")
    from annotary.sources import Reader, SourceOptions, open_sources

    path = tmp_path / "out.tar"
    data = {f"{i}.png": picture("PNG", i) for i in range(3)}
    write(path, [item_of(name, encoded) for name, encoded in data.items()])
    options = SourceOptions()
    with Reader(options) as reader:
        items = list(open_sources([str(path)], options))
        assert [reader.read(item) for item in items] == list(data.values())
