"""Captions are read from whatever holds them, and put beside those of the same images however the images are called."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.errors import NothingToDo, UsageError
from annotary.evaluation.caption_files import WrittenCaption, open_references, read_written
from annotary.evaluation.caption_pairs import judged_captions, pair_captions
from annotary.evaluation.image_names import ImageNames
from annotary.records import Annotation, Caption, Item, to_line
from annotary.registry import load
from annotary.sinks import SinkOptions

COCO = {
    "images": [{"id": 5, "file_name": "b.jpg"}, {"id": 2, "file_name": "a.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 2, "caption": "A dog. "},
        {"id": 2, "image_id": 5, "caption": "A cat."},
        {"id": 3, "image_id": 2, "caption": "One dog."},
        {"id": 4, "image_id": 5, "caption": "  "},
    ],
}


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_references_of_coco_and_of_a_table_are_the_same(tmp_path):
    coco = open_references(write(tmp_path / "refs.json", COCO))
    rows = [("a.jpg", "A dog."), ("b.jpg", "A cat."), ("a.jpg", "One dog.")]
    with (tmp_path / "refs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    for name in "ab":
        (tmp_path / f"{name}.jpg").touch()
    table = open_references(tmp_path / "refs.csv")
    for one in (coco, table):
        assert one.captions == ["A dog.", "A cat.", "One dog."]
        assert one.owners == [0, 1, 0]
        assert one.images == 2
        assert [item.image for item in one.items()] == [
            str(tmp_path / "a.jpg"),
            str(tmp_path / "b.jpg"),
        ]


def test_written_captions_are_read_from_every_form(tmp_path):
    expected = [WrittenCaption("a.jpg", "a dog"), WrittenCaption("b.jpg", "a cat, red")]
    records = [
        Annotation("a.jpg", 3, 2, captions=(Caption("a dog", 0.5), Caption("two dogs", 0.1))),
        Annotation("b.jpg", 3, 2, captions=(Caption("a cat, red"),)),
    ]
    lines = tmp_path / "records.jsonl"
    lines.write_text("".join(to_line(record) + "\n" for record in records))
    assert read_written(lines) == expected
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("image", "caption"), ("a.jpg", "a dog"), ("b.jpg", " a cat, red ")]
        )
    assert read_written(tmp_path / "table.csv") == expected
    listed = [
        {"image": "a.jpg", "captions": ["a dog", "x"]},
        {"image": "b.jpg", "captions": ["a cat, red"]},
    ]
    (tmp_path / "lists.jsonl").write_text("\n".join(map(json.dumps, listed)))
    assert read_written(tmp_path / "lists.jsonl") == expected
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [
            {"image_id": 1, "caption": "a dog"},
            {"image_id": 1, "caption": "two dogs"},
            {"image_id": 2, "caption": "a cat, red"},
        ],
    }
    assert read_written(write(tmp_path / "coco.json", coco)) == expected
    results = [{"image_id": 7, "caption": "a dog"}, {"image_id": "b.jpg", "caption": "a cat, red"}]
    assert read_written(write(tmp_path / "results.json", results)) == [
        WrittenCaption(7, "a dog"),
        expected[1],
    ]


@pytest.mark.parametrize(
    ("form", "suffix"),
    [("jsonl", ".jsonl"), ("csv", ".csv"), ("parquet", ".parquet"), ("coco-captions", ".json")],
)
def test_what_annotary_writes_is_read(tmp_path, form, suffix):
    pytest.importorskip("pyarrow")
    path = tmp_path / f"out{suffix}"
    sink = load("sinks", form).open(path, SinkOptions(), ("captions",))
    captions = (Caption("a dog, red", 0.5), Caption("dogs", 0.1))
    for name, own in (("a.jpg", captions), ("b.jpg", ())):
        sink.write(
            Item.from_path(name), Annotation(name, 3, 2, captions=own, sources={"captions": "x@1"})
        )
    sink.close(complete=True)
    assert read_written(path) == [
        WrittenCaption("a.jpg", "a dog, red"),
        WrittenCaption("b.jpg", ""),
    ]


def test_an_image_without_a_caption_has_an_empty_one(tmp_path):
    rows = [{"image": "a.jpg", "captions": []}, {"image": "b.jpg", "captions": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [one.text for one in read_written(tmp_path / "a.jsonl")] == ["", ""]


def test_judgements_are_numbers_or_lists_of_them(tmp_path):
    rows = [
        {"image": "a.jpg", "caption": "x", "rating": 3},
        {"image": "a.jpg", "caption": "y", "rating": [1, None, 2.5]},
        {"image": "b.jpg", "caption": "z"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_written(tmp_path / "a.jsonl", judgements="rating")
    assert [one.judgements for one in found] == [(3.0,), (1.0, 2.5), ()]
    for wrong in ("good", [["a"]], float("inf")):
        rows[2]["rating"] = wrong
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(UsageError, match="row 3: judgements must be"):
            read_written(tmp_path / "a.jsonl", judgements="rating")
    with pytest.raises(UsageError, match="--judgements"):
        read_written(tmp_path / "a.jsonl", judgements="none")


def test_pairs_are_of_images_that_have_both(tmp_path):
    references = open_references(write(tmp_path / "refs.json", COCO))
    written = [
        WrittenCaption(5, "cat"),
        WrittenCaption("elsewhere/c.jpg", "far"),
        WrittenCaption(99, "none"),
    ]
    pairs = pair_captions(references, written)
    assert pairs.captions == ["cat"]
    assert pairs.owners == [0]
    assert pairs.references == [["A cat."]]
    assert pairs.missing == ["a.jpg"]
    assert pairs.unknown == 2
    by_name = pair_captions(
        references, [WrittenCaption("a.jpg", "dog"), WrittenCaption("b.jpg", "cat")]
    )
    assert by_name.references == [["A dog.", "One dog."], ["A cat."]]
    assert not by_name.missing
    with pytest.raises(UsageError, match=r"several captions: 'a\.jpg'"):
        pair_captions(references, [WrittenCaption("a.jpg", "x"), WrittenCaption("a.jpg", "y")])
    judged = pair_captions(
        references,
        [WrittenCaption("a.jpg", "x", (1.0,)), WrittenCaption("a.jpg", "y", (2.0,))],
        are_judged=True,
    )
    assert judged.owners == [0, 0]
    with pytest.raises(UsageError, match="no caption is of an image of the references"):
        pair_captions(references, [WrittenCaption(3, "x")])


def test_judged_captions_need_no_references():
    pairs = judged_captions(
        [WrittenCaption("a.jpg", "x", (1.0,)), WrittenCaption("a.jpg", "y")], ""
    )
    assert [item.image for item in pairs.images] == ["a.jpg"]
    assert pairs.owners == [0, 0]
    assert pairs.references == []


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"images": []}', "holds no"),
        ("a.json", "5", "holds no"),
        ("a.json", '[{"image_id": 1}]', "holds no"),
        ("a.json", '[{"image_id": 1, "caption": 5}]', "a text|holds no"),
        ("a.jsonl", '{"image": 5, "caption": "a"}', "row 1 names no image"),
        ("a.jsonl", '{"image": "a", "caption": 5}', "captions must be text"),
        ("a.jsonl", '{"image": "a", "other": 5}', "--caption-column"),
        ("a.txt", "a", "is no table"),
    ],
)
def test_broken_files_are_told_in_a_line(tmp_path, name, text, told):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError, match=told) as error:
        read_written(path)
    assert "\n" not in str(error.value)


def test_broken_references_are_told_in_a_line(tmp_path):
    for changes, told in (
        ({"annotations": [{"image_id": 9, "caption": "a"}]}, "image 9, which is not there"),
        ({"annotations": [{"image_id": 2, "caption": 5}]}, "must be text"),
        ({"annotations": [{"image_id": 2}]}, "holds no COCO captions"),
        ({"images": 5}, "holds no COCO captions"),
    ):
        with pytest.raises(UsageError, match=told):
            open_references(write(tmp_path / "refs.json", COCO | changes))
    with pytest.raises(NothingToDo, match="has no captions"):
        open_references(write(tmp_path / "refs.json", COCO | {"annotations": []}))
    path = write(tmp_path / "refs.json", COCO)
    with pytest.raises(UsageError, match="--split is for tables"):
        open_references(path, split="val")
    with pytest.raises(UsageError, match="no such folder"):
        open_references(path, folder=tmp_path / "none")
    with pytest.raises(NothingToDo, match="has no captions"):
        read_written(write(tmp_path / "none.json", []))
    with pytest.raises(UsageError, match="no such file"):
        read_written(tmp_path / "none.csv")


def test_names_of_images():
    names = ImageNames(
        ["photos/a.jpg", "photos/b/a.jpg", "photos/c.jpg", "http://x.y/d.jpg", "c d.jpg"]
    )
    assert names.find("photos/a.jpg") == 0
    assert names.find("./photos/a.jpg") == 0
    assert names.find("../data/photos/a.jpg") == 0
    assert names.find("b/a.jpg") == 1
    assert names.find("a.jpg") is None  # two are called so
    assert names.find("/data/photos/c.jpg") == 2
    assert names.find("c.jpg") == 2
    assert names.find("other/c.jpg") is None
    assert names.find("d.jpg") == 3
    assert names.find("e.jpg") is None
    assert names.find("") is None
    assert names.find("/x/c d.jpg") == 4


paths = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join)


@given(st.lists(paths, min_size=1, max_size=6, unique=True), paths)
def test_a_name_means_one_image_or_none(known, name):
    names = ImageNames(known)
    assert [names.find(one) for one in known] == list(range(len(known)))
    found = names.find(name)
    ending = [
        one for one in known if f"/{one}".endswith(f"/{name}") or f"/{name}".endswith(f"/{one}")
    ]
    if name in known:
        assert known[found] == name
    else:
        assert (None if found is None else known[found]) == (
            ending[0] if len(ending) == 1 else None
        )
