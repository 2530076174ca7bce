"""Tables and kohya's files: what independent readers find in them, and that a file cut anywhere is continued."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from annotary.errors import ImageError, MissingExtra, OutputError, SidecarError, UsageError
from annotary.pipeline.output import FileOutput
from annotary.records import Annotation, Item, Tag
from annotary.sinks import (
    SinkOptions,
    _journaled,
    _parquet,
    format_named,
    format_of,
    open_sink,
    read_tags,
)

OUTPUTS = {
    "parquet": "out.parquet",
    "kohya": "meta.json",
    "kohya-jsonl": "meta.jsonl",
    "imagefolder": "metadata.jsonl",
}
NEEDS_PYARROW = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs pyarrow")
FORMS = [pytest.param(form, marks=NEEDS_PYARROW if form == "parquet" else ()) for form in OUTPUTS]
NAMES = ["a.jpg", "b \n c.jpg", 'd".jpg', "犬/é.jpg", "x{y},.png"]

# What a vocabulary may hold; no lone surrogates, as it is read from UTF-8.
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
scores = st.integers(0, 1_000_000).map(lambda n: n / 1_000_000)
tags = st.builds(Tag, words, scores, st.sampled_from(["", "general", "rating"]))
annotations = st.builds(
    Annotation,
    image=st.binary(min_size=1, max_size=12).filter(lambda b: b"\0" not in b).map(os.fsdecode),
    width=st.integers(1, 100_000),
    height=st.integers(1, 100_000),
    tags=st.lists(tags, max_size=6).map(tuple),
    sources=st.sampled_from([{}, {"tags": "starter@1.0"}, {"tags": "a@1 + b@2", "boxes": "c@3"}]),
)


def plain(name: str) -> str:
    """What a column of text makes of a name."""
    return name.encode("utf-8", "backslashreplace").decode()


def item_of(name: str) -> Item:
    return Item(name, path=Path(name), relative=name)


def annotation_of(name: str) -> Annotation:
    found = (Tag('dog, or "cat"', 0.75, "animal"), Tag("grass\nland", 0.5))
    return Annotation(name, 40, 30, tags=found, sources={"tags": "starter@1.0"})


def write(form: str, path: Path, names: list[str], *, complete: bool = True, **options) -> None:
    sink = open_sink(form, path, SinkOptions(**options))
    for name in names:
        if not sink.holds(item_of(name)):
            sink.write(item_of(name), annotation_of(name))
    sink.close(complete=complete)


def left_by_a_kill(form: str, path: Path, names: list[str]) -> None:
    """What a killed process leaves."""
    sink = open_sink(form, path, SinkOptions())
    for name in names:
        sink.write(item_of(name), annotation_of(name))


# --- all of them ---


@pytest.mark.parametrize("form", ["kohya", "kohya-jsonl", "imagefolder"])
def test_a_file_cut_anywhere_is_continued(form, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a thousand of them take their time
    path, names = tmp_path / OUTPUTS[form], NAMES[1:3]
    write(form, path, names)
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        write(form, path, names)
        assert path.read_bytes() == whole, f"cut after {end} bytes"


@pytest.mark.parametrize("form", FORMS)
def test_a_stopped_run_goes_on(form, tmp_path):
    path, other = tmp_path / OUTPUTS[form], tmp_path / "other" / OUTPUTS[form]
    write(form, path, NAMES[:2], complete=False)
    assert path.exists()
    write(form, path, NAMES)
    if form != "imagefolder":  # its names depend on where it lies
        write(form, other, NAMES)
        assert other.read_bytes() == path.read_bytes()
    sink = open_sink(form, path, SinkOptions())
    assert all(sink.holds(item_of(name)) for name in NAMES)
    assert not sink.holds(item_of("other.jpg"))


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_wrote_nothing(form, tmp_path):
    path = tmp_path / "new" / OUTPUTS[form]
    write(form, path, [], complete=False)
    assert not path.parent.exists()
    write(form, path, [])
    assert path.exists()
    write(form, path, NAMES if form != "imagefolder" else [str(path.parent / "a.jpg")])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "content",
    [b"hello\nworld\n", b'{"a": 1}\n{"b": 2}\n', b'[\n{"image": "a"}\n]\n', b"PAR1" + bytes(50)],
)
def test_a_file_of_something_else_is_left_alone(form, content, tmp_path):
    path = tmp_path / OUTPUTS[form]
    path.write_bytes(content)
    with pytest.raises(OutputError, match=path.stem):
        open_sink(form, path, SinkOptions())
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_only_two_have_a_suffix():
    assert format_of(Path("a/OUT.parquet")) == "parquet"
    assert format_of(Path("out.tar")) == "webdataset"
    for form in (*OUTPUTS, "webdataset"):
        assert format_named(form).is_one_file
        assert not format_named(form).can_append
    assert format_named("webdataset").needs_bytes


@pytest.mark.parametrize("form", ["kohya", "kohya-jsonl", "imagefolder"])
@given(st.lists(annotations, unique_by=lambda a: a.image, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_json_holds_any_record(form, tmp_path, found):
    path = tmp_path / OUTPUTS[form]
    path.unlink(missing_ok=True)
    written = {}
    for part in (found[:2], found[2:]):
        sink = open_sink(form, path, SinkOptions())
        for annotation in part:
            place = tmp_path / annotation.image.replace("/", "_").replace("..", "_")
            item = Item(annotation.image, path=place)
            with contextlib.suppress(SidecarError):  # a name that is not UTF-8, and imagefolder
                if not sink.holds(item):
                    sink.write(item, annotation)
                    written[str(place)] = annotation
        sink.close(complete=True)
    text = path.read_text("utf-8")
    if form == "kohya":
        rows = [{"image_path": key, **value} for key, value in json.loads(text).items()]
    else:
        rows = [json.loads(line) for line in text.removesuffix("\n").split("\n") if line]
    places = [row.get("image_path") or str(tmp_path / row["file_name"]) for row in rows]
    assert places == list(written)
    for row, annotation in zip(rows, written.values(), strict=True):
        names = [tag.name for tag in annotation.tags]
        assert row[{"kohya": "tags", "kohya-jsonl": "caption"}.get(form, "text")] == ", ".join(
            names
        )
        if form == "imagefolder":
            assert row["tags"] == names
            assert row["scores"] == [tag.score for tag in annotation.tags]
            assert row["categories"] == [tag.category for tag in annotation.tags]
    if form == "imagefolder" and rows:
        pyarrow = pytest.importorskip("pyarrow.json")
        assert pyarrow.read_json(path)["file_name"].to_pylist() == [r["file_name"] for r in rows]


# --- csv ---


@given(st.lists(annotations, unique_by=lambda a: plain(a.image), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_in_pandas(tmp_path, found):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "out.csv"
    path.unlink(missing_ok=True)
    sink = open_sink("csv", path, SinkOptions(separator="\t"))
    for annotation in found:
        sink.write(item_of(annotation.image), annotation)
    sink.close(complete=True)
    table = pandas.read_csv(
        path, keep_default_na=False, dtype={"image": str, "tags": str, "scores": str}
    )
    assert list(table.columns) == ["image", "width", "height", "tags", "scores"]
    assert table["image"].tolist() == [plain(a.image) for a in found]
    assert table["width"].tolist() == [a.width for a in found]
    names = ["\t".join(tag.name for tag in a.tags) for a in found]
    assert table["tags"].tolist() == names


# --- Parquet ---


def rows_of(path: Path) -> list[dict]:
    return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()


@given(st.lists(annotations, unique_by=lambda a: plain(a.image), max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_parquet_holds_any_record(tmp_path, found):
    pytest.importorskip("pyarrow")
    path = tmp_path / "out.parquet"
    path.unlink(missing_ok=True)
    for part in (found[:2], found[2:]):
        sink = open_sink("parquet", path, SinkOptions())
        for annotation in part:
            sink.write(item_of(annotation.image), annotation)
        sink.close(complete=True)
    rows = rows_of(path)
    assert [row["image"] for row in rows] == [plain(a.image) for a in found]
    for row, annotation in zip(rows, found, strict=True):
        assert (row["width"], row["height"]) == (annotation.width, annotation.height)
        assert [tag["name"] for tag in row["tags"]] == [tag.name for tag in annotation.tags]
        for read, tag in zip(row["tags"], annotation.tags, strict=True):
            assert read["score"] == pytest.approx(tag.score, abs=1e-7)
            assert (read["category"] or "") == tag.category
        assert {s["part"]: s["model"] for s in row["sources"]} == annotation.sources


def test_parquet_says_what_wrote_it(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "out.parquet"
    write("parquet", path, NAMES)
    with pq.ParquetFile(path) as file:
        metadata = file.schema_arrow.metadata
        assert metadata[b"annotary.schema"] == b"1"
        assert metadata[b"annotary.version"]
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_parquet_in_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "out.parquet"
    write("parquet", path, NAMES)
    table = pandas.read_parquet(path)
    assert table["image"].tolist() == NAMES
    assert table["tags"][0][0] == {"name": 'dog, or "cat"', "score": 0.75, "category": "animal"}


def test_parquet_in_polars(tmp_path):
    polars = pytest.importorskip("polars")
    path = tmp_path / "out.parquet"
    write("parquet", path, NAMES)
    long = polars.read_parquet(path).explode("tags").unnest("tags")
    assert long["name"].to_list() == ['dog, or "cat"', "grass\nland"] * len(NAMES)


def test_parquet_in_datasets(tmp_path, offline_datasets):
    path = tmp_path / "out.parquet"
    write("parquet", path, NAMES)
    table = offline_datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert table["image"][:] == NAMES
    assert table[0]["sources"] == [{"part": "tags", "model": "starter@1.0"}]


@pytest.fixture
def offline_datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets


def test_a_journal_cut_anywhere_is_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a thousand of them take their time
    pytest.importorskip("pyarrow")
    path, journal = tmp_path / "out.parquet", tmp_path / "out.parquet.part.jsonl"
    names = NAMES[:3]
    write("parquet", path, names)
    whole = path.read_bytes()
    path.unlink()
    left_by_a_kill("parquet", path, names)
    note, records = path.read_bytes(), journal.read_bytes()
    assert note.startswith(b"annotary has not finished this file; its records are in out.parquet.p")
    for end in range(len(records) + 1):
        path.write_bytes(note)
        journal.write_bytes(records[:end])
        write("parquet", path, names)
        assert path.read_bytes() == whole, f"cut after {end} bytes"
        assert sorted(tmp_path.iterdir()) == [path]


def test_a_finished_table_is_continued_after_a_kill(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "out.parquet"
    write("parquet", path, NAMES[:2])
    finished = path.read_bytes()
    left_by_a_kill("parquet", path, NAMES[2:4])
    assert path.read_bytes() == finished  # it stays readable meanwhile
    sink = open_sink("parquet", path, SinkOptions())
    assert [sink.holds(item_of(name)) for name in NAMES] == [True] * 4 + [False]
    sink.close(complete=False)
    assert [row["image"] for row in rows_of(path)] == NAMES[:4]


def test_a_kill_between_the_table_and_its_journal_doubles_nothing(tmp_path):
    pytest.importorskip("pyarrow")
    path, journal = tmp_path / "out.parquet", tmp_path / "out.parquet.part.jsonl"
    left_by_a_kill("parquet", path, NAMES)
    records = journal.read_bytes()
    write("parquet", path, NAMES)
    journal.write_bytes(records)  # as if it had not been removed yet
    (tmp_path / "new").mkdir()
    write("parquet", path, [*NAMES, "new.jpg"])
    assert [row["image"] for row in rows_of(path)] == [*NAMES, "new.jpg"]
    assert not journal.exists()


def test_a_conversion_that_fails_keeps_the_records(tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "out.parquet"
    write("parquet", path, NAMES[:1])
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", fail)
        with pytest.raises(OutputError, match="No space left on device; the same command conti"):
            write("parquet", path, NAMES)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"out.parquet", "out.parquet.part.jsonl"}
    write("parquet", path, NAMES)
    assert [row["image"] for row in rows_of(path)] == NAMES


def test_a_journal_whose_table_is_gone_is_not_taken_for_another_run(tmp_path):
    pytest.importorskip("pyarrow")
    path, journal = tmp_path / "out.parquet", tmp_path / "out.parquet.part.jsonl"
    left_by_a_kill("parquet", path, NAMES)
    path.unlink()
    records = journal.read_bytes()
    with pytest.raises(OutputError, match=r"whose out\.parquet is gone; move it away"):
        open_sink("parquet", path, SinkOptions())
    assert journal.read_bytes() == records
    write("parquet", path, ["new.jpg"], on_existing="overwrite")
    assert [row["image"] for row in rows_of(path)] == ["new.jpg"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"image": "mine", "note": "labels by hand"}\n',
        b'{"image": "a.jpg", "error": "E", "message": "m"}\n',
        b'{"image":"mine"}',
        b'{"image": "mine", "tags": ' + b"[" * 100_000 + b"\n",
    ],
)
def test_a_journal_of_someone_else_is_not_thrown_away(line, tmp_path):
    pytest.importorskip("pyarrow")
    path, journal = tmp_path / "out.parquet", tmp_path / "out.parquet.part.jsonl"
    left_by_a_kill("parquet", path, NAMES)
    path.unlink()
    content = journal.read_bytes() + line
    journal.write_bytes(content)
    with pytest.raises(OutputError, match=r"move it away|cannot be continued"):
        open_sink("parquet", path, SinkOptions(on_existing="overwrite"))
    assert journal.read_bytes() == content


def test_a_journal_that_no_settings_belong_to_is_not_thrown_away(tmp_path):
    pytest.importorskip("pyarrow")
    path, journal = tmp_path / "out.parquet", tmp_path / "out.parquet.part.jsonl"
    left_by_a_kill("parquet", path, NAMES)
    path.unlink()
    content = journal.read_bytes()
    anew = SinkOptions(on_existing="overwrite")
    for _ in range(2):
        with pytest.raises(OutputError, match=r"whose out\.parquet is gone; move it away"):
            FileOutput("parquet", path, anew, {}, retry_failed=False)
    assert journal.read_bytes() == content
    assert list(tmp_path.iterdir()) == [journal]


def test_other_lines_in_a_journal_are_told_and_kept(tmp_path):
    pytest.importorskip("pyarrow")
    path, journal = tmp_path / "out.parquet", tmp_path / "out.parquet.part.jsonl"
    write("parquet", path, NAMES[:1])
    before = path.read_bytes()
    journal.write_bytes(b'{"image": "mine", "note": "labels by hand"}\n')
    with pytest.raises(OutputError, match="other lines than records of annotary; move it away"):
        write("parquet", path, NAMES)
    assert path.read_bytes() == before
    assert b"labels by hand" in journal.read_bytes()


def test_what_a_table_and_its_journal_both_hold_is_read_once(tmp_path):
    pytest.importorskip("pyarrow")
    path, journal = tmp_path / "out.parquet", tmp_path / "out.parquet.part.jsonl"
    names = [*NAMES, os.fsdecode(b"\xff.jpg")]
    left_by_a_kill("parquet", path, names)
    records = journal.read_bytes()
    write("parquet", path, names[:2])
    left_by_a_kill("parquet", path, ["new.jpg"])
    journal.write_bytes(records + journal.read_bytes())  # as if it had not been removed yet
    images = [image for image, _ in read_tags("parquet", path, SinkOptions())]
    assert images == [*map(plain, names), "new.jpg"]


def test_a_table_of_someone_else_is_left_alone(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "out.parquet"
    pq.write_table(pa.table({"image": ["a"], "mine": [1]}), path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="other columns"):
        open_sink("parquet", path, SinkOptions())
    assert path.read_bytes() == before


def test_a_damaged_table_is_one_line(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "out.parquet"
    write("parquet", path, NAMES)
    whole = bytearray(path.read_bytes())
    whole[4:60] = bytes(56)
    path.write_bytes(whole)
    with pytest.raises(OutputError, match=r"cannot read or write .*out\.parquet"):
        write("parquet", path, ["new.jpg"])
    assert path.read_bytes() == whole


def test_row_groups_are_bounded_and_do_not_depend_on_stops(tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(_parquet, "GROUP_ROWS", 7)
    monkeypatch.setattr(_parquet, "GROUP_ENTRIES", 10)
    monkeypatch.setattr(_journaled, "READ_ROWS", 3)
    names = [f"{i}.jpg" for i in range(20)]
    once, often = tmp_path / "once.parquet", tmp_path / "often.parquet"
    write("parquet", once, names)
    for end in (1, 2, 9, 20):
        write("parquet", often, names[:end], complete=False)
    assert once.read_bytes() == often.read_bytes()
    with pq.ParquetFile(once) as file:
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [5, 5, 5, 5]  # two tags a row
    assert [row["image"] for row in rows_of(once)] == names


def test_parquet_is_written_through_a_link(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "real").mkdir()
    link = tmp_path / "out.parquet"
    link.symlink_to(tmp_path / "real" / "table.parquet")
    write("parquet", link, NAMES)
    assert link.is_symlink()
    assert [row["image"] for row in rows_of(tmp_path / "real" / "table.parquet")] == NAMES


def test_without_pyarrow_the_pip_line_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"Writing Parquet .* 'annotary\[parquet\]'"):
        open_sink("parquet", tmp_path / "out.parquet", SinkOptions())


# --- kohya ---


def test_kohya_files_hold_what_sd_scripts_reads(tmp_path):
    photo = tmp_path / "é" / "a.png"
    photo.parent.mkdir()
    Image.new("RGB", (40, 30)).save(photo)
    item = Item.from_path("é/a.png")
    for form, name in (("kohya", "meta.json"), ("kohya-jsonl", "meta.jsonl")):
        sink = open_sink(form, tmp_path / name, SinkOptions(prefix="mine", escape=True))
        sink.write(item, Annotation(item.image, 40, 30, tags=(Tag("fate_(series)", 0.5),)))
        sink.close(complete=True)
    line = "mine, fate_\\(series\\)"
    meta = json.loads((tmp_path / "meta.json").read_text("utf-8"))
    assert meta == {str(photo): {"tags": line, "image_size": [40, 30]}}
    lines = (tmp_path / "meta.jsonl").read_text("utf-8").splitlines()
    read = {"image_path": str(photo), "caption": line, "image_size": [40, 30]}
    assert [json.loads(line) for line in lines] == [read]


def test_kohya_names_come_back_as_python_has_them(tmp_path):
    name = os.fsdecode(b"\xff.jpg")
    write("kohya", tmp_path / "meta.json", [name])
    assert list(json.loads((tmp_path / "meta.json").read_text("utf-8"))) == [str(tmp_path / name)]


def test_kohya_is_told_the_size_that_the_file_stores(tmp_path):
    """sd-scripts does not turn images, and stretches those whose size is another than it was told."""
    turned = Image.new("RGB", (40, 30))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"?")
    sink = open_sink("kohya", tmp_path / "meta.json", SinkOptions())
    sink.write(item_of("turned.jpg"), Annotation("turned.jpg", 30, 40))
    sink.write(item_of("broken.jpg"), Annotation("broken.jpg", 30, 40))
    sink.close(complete=True)
    turned_entry, broken_entry = json.loads((tmp_path / "meta.json").read_text()).values()
    assert turned_entry == {"tags": "", "image_size": [40, 30]}
    assert broken_entry == {"tags": ""}


def test_kohya_names_an_image_once_however_it_is_written(tmp_path):
    write("kohya", tmp_path / "meta.json", ["a/b.jpg"])
    sink = open_sink("kohya", tmp_path / "meta.json", SinkOptions())
    assert sink.holds(item_of(str(tmp_path / "a" / "b.jpg")))
    assert sink.holds(item_of("./a/../a/b.jpg"))


@pytest.mark.parametrize("form", ["kohya", "kohya-jsonl", "imagefolder"])
def test_an_image_that_is_no_file_is_one_failure(form, tmp_path):
    sink = open_sink(form, tmp_path / OUTPUTS[form], SinkOptions())
    for item in (Item("http://x/a.jpg", url="http://x/a.jpg"), Item("stdin", data=b"?")):
        assert not sink.holds(item)
        with pytest.raises(SidecarError, match="this is no file"):
            sink.write(item, annotation_of(item.image))


def test_what_stands_behind_the_end_of_kohyas_object_is_not_cut_off(tmp_path):
    path = tmp_path / "meta.json"
    write("kohya", path, NAMES)
    path.write_bytes(path.read_bytes() + b'"more": {"tags": ""}\n')
    with pytest.raises(OutputError, match="ends the object, and there is more"):
        open_sink("kohya", path, SinkOptions())


# --- imagefolder ---


def test_imagefolder_has_one_name():
    with pytest.raises(UsageError, match=r"say --output FOLDER/metadata\.jsonl"):
        open_sink("imagefolder", Path("tags.jsonl"), SinkOptions())


def test_imagefolder_rows(tmp_path):
    write("imagefolder", Path("metadata.jsonl"), ["a.jpg", "sub/b.jpg"], separator=" | ")
    first, second = map(json.loads, Path("metadata.jsonl").read_text().splitlines())
    assert first == {
        "file_name": "a.jpg",
        "width": 40,
        "height": 30,
        "tags": ['dog, or "cat"', "grass\nland"],
        "scores": [0.75, 0.5],
        "categories": ["animal", ""],
        "text": 'dog, or "cat" | grass\nland',
    }
    assert second["file_name"] == "sub/b.jpg"


def test_imagefolder_takes_only_what_it_can_name(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    sink = open_sink("imagefolder", folder / "metadata.jsonl", SinkOptions())
    for name in ("other/a.jpg", "photos/../a.jpg", str(tmp_path / "photos2" / "a.jpg")):
        with pytest.raises(SidecarError, match=f"not below {folder}"):
            sink.write(item_of(name), annotation_of(name))
    name = os.fsdecode(b"photos/\xff.jpg")
    assert not sink.holds(item_of(name))
    with pytest.raises(SidecarError, match="no valid UTF-8"):
        sink.write(item_of(name), annotation_of(name))
    sink.write(item_of("link/a.jpg"), annotation_of("link/a.jpg"))
    assert sink.holds(item_of("photos/a.jpg"))
    assert isinstance(SidecarError("x"), ImageError)  # so the run goes on


def test_imagefolder_in_datasets(tmp_path, offline_datasets):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    names = ["a.png", "b.png", "sub/c.png"]
    for i, name in enumerate(names):
        Image.new("RGB", (8, 6), (i, 0, 0)).save(folder / name)
    shutil.copy(folder / "a.png", folder / "untagged.png")
    sink = open_sink("imagefolder", folder / "metadata.jsonl", SinkOptions())
    for i, name in enumerate(names):
        found = (Tag("red", i / 4, "colour"),) if i else ()
        sink.write(item_of(f"photos/{name}"), Annotation(f"photos/{name}", 8, 6, tags=found))
    sink.close(complete=True)
    # What annotary leaves beside it.
    (folder / "metadata.jsonl.run.json").write_text("{}")
    (folder / "failures.jsonl").write_text("{}\n")
    table = offline_datasets.load_dataset(
        "imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"), split="train"
    )
    rows = {row["image"].getpixel((0, 0))[0]: row for row in table}
    assert table.num_rows == 3
    assert rows[0]["tags"] == []
    assert (rows[2]["tags"], rows[2]["scores"]) == (["red"], [0.5])
    assert rows[2]["categories"] == ["colour"]
    assert rows[2]["text"] == "red"
