"""Labels, embeddings and decisions in every format that can hold them, and one line where it cannot."""

from __future__ import annotations

import csv
import json
import tarfile
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from annotary import registry
from annotary.errors import OutputError, UsageError
from annotary.pipeline.output import FileOutput
from annotary.records import (
    Action,
    Annotation,
    Decision,
    Embedding,
    Item,
    Label,
    Reason,
    Tag,
    from_line,
)
from annotary.sinks import SinkOptions, check_parts, format_named, formats, open_sink, read_tags
from annotary.sinks.csv import columns_of
from annotary.sinks.xmp import SUBJECT, Packet

ALL = (
    *("tags", "labels", "captions", "answers", "matches", "boxes"),
    *("embedding", "decision"),
)
NAME = "photos/a.jpg"
LABELS = (Label("polar bear", 0.75), Label("dog, or cat", 0.125))
DECISION = Decision(
    "block", (Reason("weapon", 0.75, 0.5, "block"), Reason("gun", 0.5, 0.25, "review"))
)
NEEDS_PYARROW = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs pyarrow")
OUTPUTS = {
    "jsonl": "out.jsonl",
    "json": "out.json",
    "csv": "out.csv",
    "parquet": "out.parquet",
    "kohya": "meta.json",
    "kohya-jsonl": "meta.jsonl",
    "imagefolder": "metadata.jsonl",
    "webdataset": "out.tar",
}

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
scores = st.floats(0, 1)
actions: st.SearchStrategy[Action] = st.sampled_from(["allow", "review", "block"])
reasons = st.builds(Reason, words, scores, scores, actions)
decisions = st.builds(Decision, actions, st.lists(reasons, max_size=3).map(tuple))
labels = st.lists(st.builds(Label, words, scores), max_size=4).map(tuple)


@st.composite
def embeddings(draw: st.DrawFn) -> Embedding:
    row = np.array(draw(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4)))
    row = row if np.linalg.norm(row) > 1e-3 else np.ones(4)
    return Embedding(tuple((row / np.linalg.norm(row)).tolist()))


records = st.builds(
    Annotation,
    image=words,
    width=st.integers(1, 9),
    height=st.integers(1, 9),
    labels=labels,
    embedding=embeddings(),
    decision=decisions,
    sources=st.just({"labels": "clip@1", "embedding": "clip@1", "decision": "clip@1"}),
)


def classified(name: str = NAME, **parts: object) -> Annotation:
    sources = {"labels": "clip@1.0", **dict.fromkeys(parts, "clip@1.0")}
    return Annotation(name, 40, 30, labels=LABELS, sources=sources, **parts)  # type: ignore[arg-type]


def write(
    form: str, path: Path | None, found: list[Annotation], parts: tuple[str, ...], **options: object
) -> None:
    sink = open_sink(form, path, SinkOptions(**options), parts)  # type: ignore[arg-type]
    for annotation in found:
        item = Item(annotation.image, path=Path(annotation.image))
        if format_named(form).needs_bytes:
            item = Item(annotation.image, data=b"\xff\xd8\xff")
        if not sink.holds(item):
            sink.write(item, annotation)
    sink.close(complete=True)


# --- what formats can hold ---


def test_what_each_format_holds():
    texts = {"txt", "caption", "xmp", "kohya", "kohya-jsonl"}
    expected = {
        **dict.fromkeys(texts, ("tags", "labels", "captions")),
        "hydrus": ("tags", "labels"),
        **dict.fromkeys(("jsonl", "json", "json-files", "webdataset"), ALL),
        "csv": tuple(part for part in ALL if part != "embedding"),
        "imagefolder": ("tags", "labels", "captions", "boxes", "decision"),
        "parquet": ALL,
        **dict.fromkeys(("coco", "yolo", "voc", "label-studio", "cvat"), ("boxes",)),
        "coco-captions": ("captions",),
        "npy": ("embedding",),
        "folders": ("labels", "decision"),
    }
    assert {form: format_named(form).parts for form in formats()} == expected


def test_what_a_format_cannot_hold_is_one_line_before_anything_is_done(tmp_path):
    told = (
        "--format txt cannot hold embeddings; use json, json-files, jsonl, npy, parquet, webdataset"
    )
    with pytest.raises(UsageError) as caught:
        check_parts("txt", ["embedding"])
    assert str(caught.value) == told
    for parts, words_ in (
        (("embedding", "decision"), "embeddings and decisions"),
        (("labels", "captions", "boxes", "decision"), "boxes and decisions"),
    ):
        with pytest.raises(UsageError, match=f"kohya cannot hold {words_}; use .*json, json-f"):
            open_sink("kohya", tmp_path / "meta.json", SinkOptions(), parts)
    with pytest.raises(ValueError, match="a record has no part colour; it has tags, labels, "):
        check_parts("txt", ["colour"])
    with pytest.raises(UsageError, match="csv cannot hold embeddings"):
        FileOutput(
            "csv", tmp_path / "o.csv", SinkOptions(), {}, retry_failed=False, parts=["embedding"]
        )
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_says_nothing_of_parts_holds_tags_and_is_opened_as_before(monkeypatch):
    """As plugins that were written before there were parts."""
    plugin = ModuleType("plugin")
    plugin.SUFFIXES = ()  # type: ignore[attr-defined]
    plugin.open = lambda output, options: (output, options)  # type: ignore[attr-defined]
    real = registry.load
    monkeypatch.setattr(
        registry, "load", lambda room, name: plugin if name == "mine" else real(room, name)
    )
    assert open_sink("mine", Path("x"), SinkOptions()) == (Path("x"), SinkOptions())
    with pytest.raises(UsageError, match="--format mine cannot hold labels"):
        open_sink("mine", Path("x"), SinkOptions(), ["labels"])


def test_other_parts_are_other_settings(tmp_path):
    def run(*parts: str) -> None:
        path = tmp_path / "out.jsonl"
        output = FileOutput("jsonl", path, SinkOptions(), {}, retry_failed=False, parts=parts)
        output.close(complete=True)

    run("tags")
    state = json.loads((tmp_path / "out.jsonl.run.json").read_text())
    assert state["settings"] == {"format": "jsonl"}  # as it was before there were parts
    run("tags")
    with pytest.raises(OutputError, match=r"parts was not said, now \['labels', 'decision'\]"):
        run("decision", "labels")


# --- records as JSON ---


@pytest.mark.parametrize("form", ["jsonl", "json", "webdataset"])
@given(st.lists(records, unique_by=lambda record: record.image, min_size=1, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_whole_records_come_back(form, tmp_path, found):
    path = tmp_path / OUTPUTS[form]
    path.unlink(missing_ok=True)
    parts = ("labels", "embedding", "decision")
    write(form, path, found[:1], parts)
    write(form, path, found, parts)
    if form == "jsonl":
        read = [from_line(line) for line in path.read_bytes().splitlines()]
    elif form == "json":
        read = [Annotation.from_json(value) for value in json.loads(path.read_bytes())]
    else:
        with tarfile.open(path) as tar:
            read = [
                from_line(tar.extractfile(info).read())  # type: ignore[union-attr]
                for info in tar
                if info.name.endswith(".json")
            ]
    assert read == found


def test_json_files_hold_whole_records(tmp_path):
    found = classified(str(tmp_path / "a.jpg"), decision=DECISION, embedding=Embedding((0.6, 0.8)))
    write("json-files", None, [found], ("labels", "embedding", "decision"))
    assert Annotation.from_json(json.loads((tmp_path / "a.json").read_text())) == found


def test_json_files_that_are_added_to(tmp_path):
    name = str(tmp_path / "a.jpg")
    place = tmp_path / "a.json"
    there = {"labels": [{"name": "Dog, or cat", "score": 0.5}], "sources": {"labels": "a@1"}}
    there["decision"] = {"action": "allow", "reasons": []}
    there["sources"]["decision"] = "a@1"
    place.write_text(json.dumps(there))
    found = classified(name, decision=DECISION)
    write("json-files", None, [found], ("labels", "decision"), on_existing="append")
    after = json.loads(place.read_text())
    assert [label["name"] for label in after["labels"]] == ["Dog, or cat", "polar bear"]
    assert after["decision"] == there["decision"]
    assert after["sources"] == {"labels": "a@1 + clip@1.0", "decision": "a@1"}
    before = place.read_bytes()
    write("json-files", None, [found], ("labels", "decision"), on_existing="append")
    assert place.read_bytes() == before


# --- text and keywords ---


@pytest.mark.parametrize(
    ("form", "file", "text"),
    [
        ("txt", "a.txt", "mine, polar bear, dog, or cat\n"),
        ("caption", "a.caption", "mine, polar bear, dog, or cat\n"),
        ("hydrus", "a.jpg.txt", "mine\npolar bear\ndog, or cat\n"),
    ],
)
def test_labels_in_text_sidecars(form, file, text, tmp_path):
    write(form, None, [classified(str(tmp_path / "a.jpg"))], ("labels",), prefix="mine")
    assert (tmp_path / file).read_text() == text


def test_tags_and_labels_on_one_line(tmp_path):
    tags = (Tag("dog", 0.9, "animal"), Tag("polar bear", 0.8))
    found = Annotation(str(tmp_path / "a.jpg"), 4, 3, tags=tags, labels=LABELS)
    write("txt", None, [found], ("tags", "labels"))
    assert (tmp_path / "a.txt").read_text() == "dog, polar bear, dog, or cat\n"


@pytest.mark.parametrize("form", ["kohya", "kohya-jsonl", "webdataset", "imagefolder"])
def test_labels_on_the_lines_of_tables(form, tmp_path):
    path = tmp_path / OUTPUTS[form]
    write(form, path, [classified(str(tmp_path / "a.jpg"))], ("labels",), escape=True)
    content = path.read_bytes()
    assert b"polar bear, dog, or cat" in content
    if form != "webdataset":
        names = [name for _, tags in read_tags(form, path, SinkOptions()) for name, _ in tags]
        assert names[0] == "polar bear"


def keywords(place: Path, name: tuple[str, str] = SUBJECT) -> list[str]:
    return Packet(place.read_bytes()).values(name)


def test_labels_as_keywords(tmp_path):
    """A run that tags and one that classifies both write, and neither takes the other's image for done."""
    name, place = str(tmp_path / "a.jpg"), tmp_path / "a.xmp"
    annotary = "urn:annotary:xmp:1.0/"
    tagged = Annotation(name, 4, 3, tags=(Tag("snow", 0.9),), sources={"tags": "starter@1"})
    write("xmp", None, [classified(name)], ("labels",))
    assert keywords(place) == ["polar bear", "dog, or cat"]
    assert keywords(place, (annotary, "labelled")) == ["clip@1.0"]
    assert keywords(place, (annotary, "tagged")) == []
    write("xmp", None, [tagged], ("tags",))
    assert keywords(place) == ["polar bear", "dog, or cat", "snow"]
    assert keywords(place, (annotary, "tagged")) == ["starter@1"]
    before = place.read_bytes()
    for found, parts in ((classified(name), ("labels",)), (tagged, ("tags",))):
        assert open_sink("xmp", None, SinkOptions(), parts).holds(Item.from_path(name))
        write("xmp", None, [found], parts)
        assert open_sink("xmp", None, SinkOptions(), ("tags", "labels")).holds(Item.from_path(name))
    assert place.read_bytes() == before
    write("xmp", None, [tagged], ("tags",), on_existing="overwrite")
    assert keywords(place) == ["snow"]
    assert keywords(place, (annotary, "labelled")) == []
    assert not open_sink("xmp", None, SinkOptions(), ("labels",)).holds(Item.from_path(name))


def test_labels_in_the_image_itself(tmp_path):
    place = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(place)
    write("xmp", None, [classified(str(place))], ("labels",), embed=True)
    assert b"<rdf:li>polar bear</rdf:li>" in place.read_bytes()
    for parts, is_done in ((("labels",), True), (("tags",), False)):
        sink = open_sink("xmp", None, SinkOptions(embed=True), parts)
        assert sink.holds(Item.from_path(place)) == is_done
        sink.close(complete=True)


# --- csv ---


@pytest.mark.parametrize(
    ("parts", "row"),
    [
        (("tags",), {"tags": "snow", "scores": "0.9"}),
        (("labels",), {"labels": "polar bear|dog, or cat", "scores": "0.75|0.125"}),
        (
            ("tags", "labels"),
            {
                "tags": "snow",
                "scores": "0.9",
                "labels": "polar bear|dog, or cat",
                "label_scores": "0.75|0.125",
            },
        ),
        (
            ("labels", "decision"),
            {
                "labels": "polar bear|dog, or cat",
                "scores": "0.75|0.125",
                "decision": "block",
                "reasons": "weapon 0.75 >= 0.5 (block)|gun 0.5 >= 0.25 (review)",
            },
        ),
        (("decision",), {"decision": "block", "reasons": "weapon 0.75 >= 0.5 (block)|gun 0.5 >= 0.25 (review)"}),
    ],
)  # fmt: skip
def test_columns_of_csv(parts, row, tmp_path):
    path = tmp_path / "out.csv"
    found = classified(tags=(Tag("snow", 0.9),), decision=DECISION)
    write("csv", path, [found], parts, separator="|")
    write("csv", path, [found, classified("b.jpg")], parts, separator="|")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    size = {"image": NAME, "width": "40", "height": "30"}
    assert list(rows[0]) == list(columns_of(parts)) == [*size, *row]
    assert rows[0] == {**size, **row}
    if "labels" in parts or "tags" in parts:
        read = list(read_tags("csv", path, SinkOptions(separator="|")))
        expected = [("snow", 0.9)] if "tags" in parts else [(x.name, x.score) for x in LABELS]
        assert read[0] == (NAME, tuple(expected))
    else:
        with pytest.raises(OutputError, match="has no tags among its columns"):
            list(read_tags("csv", path, SinkOptions()))


def test_a_csv_of_other_columns_is_not_continued(tmp_path):
    path = tmp_path / "out.csv"
    write("csv", path, [classified()], ("labels",))
    before = path.read_bytes()
    with pytest.raises(OutputError) as caught:
        write("csv", path, [classified("b")], ("labels", "decision"))
    assert str(caught.value) == (
        f"{path} has the columns image, width, height, labels, scores, and this run writes"
        " image, width, height, labels, scores, decision, reasons; choose another --output"
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize("parts", [("labels",), ("tags", "labels", "decision")])
def test_a_csv_cut_anywhere_is_continued(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    path = tmp_path / "out.csv"
    found = [classified(name, decision=DECISION) for name in ("a", 'b "\n c')]
    write("csv", path, found, parts)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        write("csv", path, found, parts)
        assert path.read_bytes() == whole, f"cut after {end} bytes"


# --- imagefolder ---


def test_imagefolder_with_labels_in_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    first = classified(str(tmp_path / "a.png"), decision=DECISION)
    second = Annotation(str(tmp_path / "b.png"), 8, 6, decision=Decision("allow"))
    path = tmp_path / "metadata.jsonl"
    write("imagefolder", path, [first, second], ("labels", "decision"))
    table = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"), split="train"
    )
    rows = list(table)
    assert [row["label"] for row in rows] == ["polar bear", None]
    assert rows[0]["labels"] == ["polar bear", "dog, or cat"]
    assert rows[0]["scores"] == [0.75, 0.125]
    assert [row["decision"] for row in rows] == ["block", "allow"]
    assert rows[0]["reasons"][0]["name"] == "weapon"
    assert rows[1]["reasons"] == []


def test_imagefolder_has_the_same_columns_in_all_rows(tmp_path):
    path = tmp_path / "metadata.jsonl"
    found = classified(str(tmp_path / "a.png"), tags=(Tag("snow", 0.9),))
    write("imagefolder", path, [found], ("tags", "labels"))
    row = json.loads(path.read_text())
    assert list(row)[3:] == [
        "tags",
        "scores",
        "categories",
        "label",
        "labels",
        "label_scores",
        "text",
    ]
    for parts, told in ((("labels",), "labels"), (("tags",), "tags")):
        with pytest.raises(
            OutputError, match=f"line 1 has tags and labels, and this run writes {told}"
        ):
            write("imagefolder", path, [found], parts)


# --- Parquet ---


@NEEDS_PYARROW
@given(st.lists(records, unique_by=lambda record: record.image, min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_parquet_holds_all_parts(tmp_path, found):
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "out.parquet"
    path.unlink(missing_ok=True)
    parts = ("labels", "embedding", "decision")
    write("parquet", path, found[:2], parts)
    write("parquet", path, found, parts)
    table = pq.read_table(path)
    expected = ["image", "width", "height", "labels", "embedding", "decision", "sources"]
    assert table.column_names == expected
    single = np.float32
    for row, record in zip(table.to_pylist(), found, strict=True):
        assert row["labels"] == [{"name": x.name, "score": single(x.score)} for x in record.labels]
        assert row["embedding"] == np.array(record.embedding.vector, single).tolist()
        assert row["decision"]["action"] == record.decision.action
        assert row["decision"]["reasons"] == [
            {**x.to_json(), "score": single(x.score), "threshold": single(x.threshold)}
            for x in record.decision.reasons
        ]


@NEEDS_PYARROW
def test_parquet_of_labels_in_pandas_and_polars(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "out.parquet"
    found = classified(decision=DECISION, embedding=Embedding((0.6, 0.8)))
    bare = Annotation("b.jpg", 4, 3, sources={"labels": "clip@1.0"})
    write("parquet", path, [found, bare], ("labels", "embedding", "decision"))
    table = pandas.read_parquet(path)
    assert table["labels"][0][0] == {"name": "polar bear", "score": 0.75}
    np.testing.assert_allclose(table["embedding"][0], [0.6, 0.8], atol=1e-7)
    assert table["decision"][0]["action"] == "block"
    assert len(table["labels"][1]) == 0
    assert table["decision"][1] is None
    assert table["embedding"][1] is None
    tags = list(read_tags("parquet", path, SinkOptions()))
    assert tags == [(NAME, (("polar bear", 0.75), ("dog, or cat", 0.125))), ("b.jpg", ())]
    polars = pytest.importorskip("polars")
    assert polars.read_parquet(path)["decision"].struct.field("action").to_list() == ["block", None]


@NEEDS_PYARROW
def test_a_table_of_the_first_version_goes_on_with_tags(tmp_path):
    """The columns and the metadata are those of 0.2.0, written here by hand."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    tag = pa.struct([("name", pa.string()), ("score", pa.float32()), ("category", pa.string())])
    source = pa.struct([("part", pa.string()), ("model", pa.string())])
    columns = [("image", pa.string()), ("width", pa.int32()), ("height", pa.int32())]
    columns += [("tags", pa.list_(tag)), ("sources", pa.list_(source))]
    schema = pa.schema(columns, metadata={"annotary.version": "0.2.0", "annotary.schema": "1"})
    row = {"image": "old.jpg", "width": 4, "height": 3}
    row["tags"] = [{"name": "dog", "score": 0.5, "category": "animal"}]
    row["sources"] = [{"part": "tags", "model": "starter@1.1"}]
    path = tmp_path / "out.parquet"
    pq.write_table(pa.Table.from_pylist([row], schema=schema), path)
    new = Annotation("new.jpg", 4, 3, tags=(Tag("cat", 0.25),), sources={"tags": "starter@1.1"})
    with pytest.raises(OutputError) as caught:
        write("parquet", path, [new], ("tags", "labels"))
    assert str(caught.value) == (
        f"{path} has the columns image, width, height, tags, sources, and this run writes"
        " image, width, height, tags, labels, sources; choose another --output"
    )
    write("parquet", path, [Annotation("old.jpg", 4, 3), new], ("tags",))
    rows = pq.read_table(path).to_pylist()
    assert rows[0] == row
    assert rows[1]["tags"] == [{"name": "cat", "score": 0.25, "category": None}]


@NEEDS_PYARROW
def test_row_groups_are_bounded_by_embeddings_too(tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("annotary.sinks._parquet.GROUP_ENTRIES", 4)
    path = tmp_path / "out.parquet"
    embedding = Embedding((1.0, *([0.0] * 15)))  # two entries
    found = [Annotation(f"{n}.jpg", 4, 3, embedding=embedding) for n in range(5)]
    write("parquet", path, found, ("embedding",))
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [2, 2, 1]
    with pytest.raises(OutputError, match="has no tags among its columns"):
        list(read_tags("parquet", path, SinkOptions()))


@NEEDS_PYARROW
def test_a_journal_of_labels_is_read_back(tmp_path):
    path = tmp_path / "out.parquet"
    sink = open_sink("parquet", path, SinkOptions(), ("labels",))
    sink.write(Item(NAME, path=Path(NAME)), classified())
    ((image, tags),) = read_tags("parquet", path, SinkOptions())
    assert (image, tags) == (NAME, (("polar bear", 0.75), ("dog, or cat", 0.125)))


@NEEDS_PYARROW
def test_a_broken_line_of_a_journal_is_passed_over_when_nothing_follows(tmp_path):
    """As when the image that was being written is not there any more."""
    pq = pytest.importorskip("pyarrow.parquet")
    path, journal = tmp_path / "out.parquet", tmp_path / "out.parquet.part.jsonl"
    sink = open_sink("parquet", path, SinkOptions(), ("labels",))
    for name in ("a.jpg", "b.jpg"):
        sink.write(Item(name, path=Path(name)), classified(name))
    journal.write_bytes(journal.read_bytes()[:-9])
    write("parquet", path, [], ("labels",))
    assert pq.read_table(path)["image"].to_pylist() == ["a.jpg"]
