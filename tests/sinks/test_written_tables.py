"""Captions, answers, matches and boxes in CSV and Parquet: a row each, or a cell, and nothing lost by a kill."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from annotary.errors import OutputError
from annotary.records import Annotation, Answer, Box, Caption, Item, Match, Tag, from_line
from annotary.sinks import SinkOptions, open_sink, read_tags
from annotary.sinks.csv import ROW_EACH, columns_of

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
scores = st.floats(0, 1)
maybe = st.none() | scores
edges = st.floats(-10, 1e4, allow_nan=False)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    (left, right), (top, bottom) = (sorted((draw(edges), draw(edges))) for _ in range(2))
    return Box(draw(words), draw(scores), (left, top, right, bottom))


def several(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(strategy, max_size=3).map(tuple)


records = st.builds(
    Annotation,
    image=st.text(min_size=1, max_size=8),
    width=st.integers(1, 9),
    height=st.integers(1, 9),
    captions=several(st.builds(Caption, words, maybe, maybe)),
    answers=several(st.builds(Answer, words, words, maybe)),
    matches=several(st.builds(Match, words, scores, st.none() | st.floats(-1, 1))),
    boxes=several(boxes()),
    sources=st.just({"boxes": "owl@1", "captions": "blip@1"}),
)
in_one_folder = settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)

FOUND = Annotation(
    'a "b",\n.jpg',
    40,
    30,
    tags=(Tag("dog", 0.9),),
    captions=(Caption("a dog, here", 0.5, 0.75), Caption("a\ndog")),
    answers=(Answer("how many,\nsay?", "two", 0.5), Answer("where?", 'a "b"')),
    matches=(Match("a dog", 0.5, -0.25), Match("a, cat", 0.125)),
    boxes=(Box("dog", 0.75, (0.5, 1.0, 33.25, 30.0)), Box('a "cat", \nsmall', 0.5, (1, 2, 3, 4))),
)
EMPTY = Annotation("b.jpg", 4, 3)
LAST = Annotation("c.jpg", 4, 3, boxes=(Box("dog", 0.25, (0, 0, 1, 1)),))


def write(form: str, path: Path, found: list[Annotation], *parts: str) -> None:
    sink = open_sink(form, path, SinkOptions(), parts)
    for annotation in found:
        item = Item(annotation.image, data=b"-")
        if not sink.holds(item):
            sink.write(item, annotation)
    sink.close(complete=True)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_row_each_box(tmp_path):
    path = tmp_path / "boxes.csv"
    write("csv", path, [FOUND, EMPTY, LAST], "boxes")
    rows = rows_of(path)
    assert tuple(rows[0]) == columns_of(("boxes",)) == ROW_EACH["boxes"]
    assert [row["image"] for row in rows] == [FOUND.image, FOUND.image, "b.jpg", "c.jpg"]
    assert [row["boxes"] for row in rows] == ["2", "2", "0", "1"]
    assert rows[0] == {
        "image": FOUND.image,
        "width": "40",
        "height": "30",
        "boxes": "2",
        "label": "dog",
        "score": "0.75",
        "left": "0.5",
        "top": "1",
        "right": "33.25",
        "bottom": "30",
    }
    assert rows[2]["label"] == rows[2]["score"] == rows[2]["left"] == ""
    read = list(read_tags("csv", path, SinkOptions()))
    assert read[0] == (FOUND.image, (("dog", 0.75), ('a "cat", \nsmall', 0.5)))
    assert read[1:] == [("b.jpg", ()), ("c.jpg", (("dog", 0.25),))]


def test_a_row_each_in_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "boxes.csv"
    write("csv", path, [FOUND, EMPTY, LAST], "boxes")
    table = pandas.read_csv(path)
    assert table["left"].tolist()[:2] == [0.5, 1.0]
    assert np.isnan(table["left"][2])
    assert table.groupby("image", sort=False)["boxes"].first().tolist() == [2, 0, 1]
    assert (table["right"] - table["left"]).max() == 32.75


def test_a_row_each_answer_and_match(tmp_path):
    write("csv", tmp_path / "answers.csv", [FOUND, EMPTY], "answers")
    write("csv", tmp_path / "matches.csv", [FOUND, EMPTY], "matches")
    answers, matches = rows_of(tmp_path / "answers.csv"), rows_of(tmp_path / "matches.csv")
    told = [(row["answers"], row["question"], row["answer"], row["score"]) for row in answers]
    assert told == [
        ("2", "how many,\nsay?", "two", "0.5"),
        ("2", "where?", 'a "b"', ""),
        ("0", "", "", ""),
    ]
    told = [(row["matches"], row["text"], row["score"], row["cosine"]) for row in matches]
    assert told == [("2", "a dog", "0.5", "-0.25"), ("2", "a, cat", "0.125", ""), ("0", "", "", "")]


def test_captions_are_columns(tmp_path):
    path = tmp_path / "captions.csv"
    one = Annotation("d.jpg", 4, 3, captions=(Caption("one"),))
    write("csv", path, [FOUND, EMPTY, one], "captions")
    rows = rows_of(path)
    columns = ["image", "width", "height", "caption", "caption_score", "caption_match"]
    assert list(rows[0]) == columns
    told = [tuple(row[column] for column in columns[3:]) for row in rows]
    assert told == [("a dog, here\na dog", "0.5\n", "0.75\n"), ("", "", ""), ("one", "", "")]
    with pytest.raises(OutputError, match="has no tags among its columns"):
        list(read_tags("csv", path, SinkOptions()))


def test_mixed_parts_are_cells_of_json(tmp_path):
    path = tmp_path / "all.csv"
    parts = ("tags", "captions", "answers", "matches", "boxes", "decision")
    write("csv", path, [FOUND, EMPTY], *parts)
    first, second = rows_of(path)
    assert list(first)[3:] == [
        *("tags", "scores", "caption", "caption_score", "caption_match"),
        *("answers", "matches", "boxes", "decision", "reasons"),
    ]
    assert tuple(Answer(**entry) for entry in json.loads(first["answers"])) == FOUND.answers
    assert tuple(Match(**entry) for entry in json.loads(first["matches"])) == FOUND.matches
    assert json.loads(first["boxes"]) == [box.to_json() for box in FOUND.boxes]
    assert second["boxes"] == second["answers"] == second["matches"] == "[]"
    both = tmp_path / "both.csv"
    write("csv", both, [FOUND, LAST], "captions", "boxes")
    assert list(read_tags("csv", both, SinkOptions()))[1] == ("c.jpg", (("dog", 0.25),))


@in_one_folder
@given(st.lists(records, unique_by=lambda record: record.image, min_size=1, max_size=4))
def test_rows_each_come_back(tmp_path, found):
    path = tmp_path / "boxes.csv"
    path.unlink(missing_ok=True)
    write("csv", path, found[:2], "boxes")
    write("csv", path, found, "boxes")
    rows = iter(rows_of(path))
    for record in found:
        for box in record.boxes or (None,):
            row = next(rows)
            assert row["image"] == record.image.encode("utf-8", "backslashreplace").decode()
            assert int(row["boxes"]) == len(record.boxes)
            if box is not None:
                assert row["label"] == box.label
                xyxy = [float(row[edge]) for edge in ("left", "top", "right", "bottom")]
                assert xyxy == pytest.approx(box.xyxy, rel=1e-9, abs=1e-300)
    assert next(rows, None) is None


@pytest.mark.parametrize(
    "parts", [("boxes",), ("answers",), ("matches",), ("captions",), ("tags", "boxes")]
)
def test_a_table_cut_anywhere_is_continued(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    path = tmp_path / "out.csv"
    found = [FOUND, EMPTY, LAST]
    write("csv", path, found, *parts)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        write("csv", path, found, *parts)
        assert path.read_bytes() == whole, f"cut after {end} bytes"


def test_a_table_that_lacks_a_row_is_not_continued(tmp_path):
    path = tmp_path / "out.csv"
    write("csv", path, [LAST, FOUND, EMPTY], "boxes")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join((*lines[:2], *lines[4:])))
    with pytest.raises(OutputError, match=r"cannot be continued: rows of .+ are missing"):
        write("csv", path, [EMPTY], "boxes")
    path.write_bytes(b"".join((*lines[:1], b"x.jpg,4,3,many,dog,0.5,1,1,2,2\n")))
    with pytest.raises(OutputError, match="a row does not say how many belong to its image"):
        write("csv", path, [EMPTY], "boxes")


@pytest.mark.parametrize("form", ["jsonl", "json", "webdataset"])
@in_one_folder
@given(st.lists(records, unique_by=lambda record: record.image, min_size=1, max_size=3))
def test_whole_records_come_back(form, tmp_path, found):
    path = tmp_path / ("out.tar" if form == "webdataset" else "out")
    path.unlink(missing_ok=True)
    parts = ("captions", "answers", "matches", "boxes")
    write(form, path, found[:1], *parts)
    write(form, path, found, *parts)
    if form == "webdataset":
        with tarfile.open(path) as tar:
            lines = [
                tar.extractfile(info).read()  # type: ignore[union-attr]
                for info in tar
                if info.name.endswith(".json")
            ]
        read = list(map(from_line, lines))
    elif form == "json":
        read = [Annotation.from_json(value) for value in json.loads(path.read_bytes())]
    else:
        read = list(map(from_line, path.read_bytes().splitlines()))
    assert read == found


@in_one_folder
@given(st.lists(records, unique_by=lambda record: record.image, min_size=1, max_size=4))
def test_parquet_has_columns_with_types(tmp_path, found):
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "out.parquet"
    path.unlink(missing_ok=True)
    parts = ("captions", "answers", "matches", "boxes")
    write("parquet", path, found[:2], *parts)
    write("parquet", path, found, *parts)
    table = pq.read_table(path)
    assert table.column_names == ["image", "width", "height", *parts, "sources"]
    single = np.float32

    def rounded(entry: dict) -> dict:
        return {k: single(v) if isinstance(v, float) else v for k, v in entry.items()}

    for row, record in zip(table.to_pylist(), found, strict=True):
        captions = [{"score": None, "match": None, **x.to_json()} for x in record.captions]
        assert row["captions"] == list(map(rounded, captions))
        answers = [{"score": None, **x.to_json()} for x in record.answers]
        assert row["answers"] == list(map(rounded, answers))
        matches = [{"cosine": None, **x.to_json()} for x in record.matches]
        assert row["matches"] == list(map(rounded, matches))
        for box, entry in zip(record.boxes, row["boxes"], strict=True):
            left, top, right, bottom = map(float, box.xyxy)
            plain = {"label": box.label, "score": float(box.score)}
            assert entry == rounded(
                {**plain, "left": left, "top": top, "right": right, "bottom": bottom}
            )


def test_boxes_of_parquet_in_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "out.parquet"
    write("parquet", path, [FOUND, EMPTY, LAST], "boxes")
    table = pandas.read_parquet(path)
    assert [len(boxes) for boxes in table["boxes"]] == [2, 0, 1]
    flat = pandas.json_normalize(table.explode("boxes").dropna()["boxes"])
    assert flat["right"].tolist() == [33.25, 3.0, 1.0]
    read = list(read_tags("parquet", path, SinkOptions()))
    assert read == [
        (FOUND.image, (("dog", 0.75), ('a "cat", \nsmall', 0.5))),
        ("b.jpg", ()),
        ("c.jpg", (("dog", 0.25),)),
    ]


def test_boxes_are_counted_in_records(tmp_path):
    twice = Annotation(
        "d.jpg", 4, 3, boxes=(Box("dog", 0.25, (0, 0, 1, 1)), Box("dog", 0.5, (0, 0, 2, 2)))
    )
    for form in ("jsonl", "json"):
        write(form, tmp_path / f"a.{form}", [twice, EMPTY], "boxes")
        read = list(read_tags(form, tmp_path / f"a.{form}", SinkOptions()))
        assert read == [("d.jpg", (("dog", 0.5),)), ("b.jpg", ())]
    write("json-files", tmp_path / "files", [twice], "boxes")
    ((_, tags),) = read_tags("json-files", tmp_path / "files", SinkOptions())
    assert tags == (("dog", 0.5),)


def test_boxes_of_an_imagefolder_in_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    found = []
    for name, boxes in (("a.png", FOUND.boxes), ("b.png", ())):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
        found.append(Annotation(str(tmp_path / name), 40, 30, boxes=boxes))
    path = tmp_path / "metadata.jsonl"
    for _ in range(2):
        sink = open_sink("imagefolder", path, SinkOptions(), ("boxes",))
        for record in found:
            item = Item.from_path(record.image)
            if not sink.holds(item):
                sink.write(item, record)
        sink.close(complete=True)
    table = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"), split="train"
    )
    first, second = (row["objects"] for row in table)
    assert first["bbox"] == [[0.5, 1.0, 32.75, 29.0], [1.0, 2.0, 2.0, 2.0]]
    assert first["categories"] == [box.label for box in FOUND.boxes]
    assert first["scores"] == [0.75, 0.5]
    assert second == {"bbox": [], "categories": [], "scores": []}
    with pytest.raises(OutputError, match="line 1 has boxes, and this run writes tags"):
        open_sink("imagefolder", path, SinkOptions(), ("tags",))
    tags = list(read_tags("imagefolder", path, SinkOptions()))
    assert tags[0] == ("a.png", (("dog", 0.75), (FOUND.boxes[1].label, 0.5)))
