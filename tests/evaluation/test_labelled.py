"""Labelled and captioned datasets: class folders, tables, and what classes are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from annotary.errors import NothingToDo, UsageError
from annotary.evaluation.class_names import named_classes
from annotary.evaluation.labelled import CaptionedImages, LabelledImages, sorted_labels
from annotary.records import Failure, Item


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")


def told(images: LabelledImages) -> list[tuple[str, tuple[str, ...]]]:
    return [(item.image, labels) for item, labels in images]


def test_class_folders_and_what_is_in_them():
    touch("data/dog/1.jpg", "data/cat/deep/2.png", "data/cat/notes.txt", "data/.git/x.jpg")
    touch("data/beside.jpg", "elsewhere/3.jpg")
    Path("data/empty").mkdir()
    Path("data/linked").symlink_to(Path("elsewhere").absolute())
    images = LabelledImages(Path("data"))
    assert images.classes == ("cat", "dog", "empty", "linked")
    assert images.unlabelled == 1
    expected = [
        ("data/cat/deep/2.png", ("cat",)),
        ("data/dog/1.jpg", ("dog",)),
        ("data/linked/3.jpg", ("linked",)),
    ]
    assert told(images) == told(images) == expected


CSV = "path,label\na.jpg,cat\nb.jpg, dog \nc.jpg,\n\nmissing.jpg,cat\n"
JSONL = [
    {"image": "a.jpg", "label": "cat"},
    {"image": "b.jpg", "label": "dog"},
    {"image": "c.jpg"},
    {"image": "missing.jpg", "label": {"name": "cat", "score": 1.0}},
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_of_all_kinds_say_the_same(suffix: str):
    touch("data/a.jpg", "data/b.jpg", "data/c.jpg")
    path = Path(f"data/table{suffix}")
    if suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, JSONL)))
    elif suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        arrow = pytest.importorskip("pyarrow")
        rows = [{"image": row["image"], "label": row.get("label")} for row in JSONL[:3]]
        rows.append({"image": "missing.jpg", "label": "cat"})
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\ufeff" + (CSV if suffix == ".csv" else CSV.replace(",", "\t")))
    images = LabelledImages(path)
    assert images.classes == ("cat", "dog")
    assert images.unlabelled == 1
    found = list(images)
    assert [(one.item.image, one.labels) for one in found] == [
        ("data/a.jpg", ("cat",)),
        ("data/b.jpg", ("dog",)),
        ("missing.jpg", ("cat",)),
    ]
    assert isinstance(found[2].item, Failure)


def test_datasets_of_hugging_face_bring_images_and_names():
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    features = {"label": {"names": ["cat", "dog", "frog"], "_type": "ClassLabel"}}
    table = arrow.table(
        {
            "img": [{"bytes": b"one", "path": "x/1.png"}, {"bytes": b"two", "path": None}],
            "label": [1, 0],
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, "train.parquet")
    images = LabelledImages(Path("train.parquet"), image_column="img")
    assert images.classes == ("cat", "dog", "frog")
    found = list(images)
    assert [one.labels for one in found] == [("dog",), ("cat",)]
    assert [one.item.image for one in found] == ["train.parquet/0-1.png", "train.parquet/1"]
    assert isinstance(found[0].item, Item)
    assert found[0].item.data == b"one"


def test_several_labels_and_none():
    Path("t.csv").write_text('image,labels\na.jpg,"cat, dog"\nb.jpg,\nc.jpg,cat\n')
    images = LabelledImages(Path("t.csv"), is_multi_label=True)
    assert [labels for _, labels in images] == [("cat", "dog"), (), ("cat",)]
    assert images.unlabelled == 0
    assert LabelledImages(Path("t.csv")).classes == ("cat", "cat, dog")
    Path("t.jsonl").write_text('{"image": "a.jpg", "labels": ["cat", "dog"]}\n')
    assert LabelledImages(Path("t.jsonl"), is_multi_label=True).classes == ("cat", "dog")
    with pytest.raises(UsageError, match="row 1 has 2 labels, where there may be one"):
        LabelledImages(Path("t.jsonl"))


def test_numbers_are_sorted_by_their_value():
    assert sorted_labels(["10", "9", "1"]) == ("1", "9", "10")
    assert sorted_labels(["10", "9", "a"]) == ("10", "9", "a")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "", "x.csv is empty"),
        ("x.csv", "image,what\na,b\n", "usual name for labels; choose one with --label-column"),
        ("x.csv", "what,label\na,b\n", "usual name for images; choose one with --image-column"),
        ("x.csv", "image,label\n", "x.csv has no labels"),
        ("x.jsonl", "[1]\n", "row 1 is no JSON object"),
        ("x.jsonl", '{"image": "a", "label": "b"}\n{\n', "row 2 is not JSON"),
        ("x.jsonl", '{"image": "a", "label": true}\n', "row 1: a label must be text"),
        ("x.jsonl", '{"image": "a", "label": 0.5}\n', "row 1: a label must be text"),
        ("x.parquet", "PAR", "x.parquet cannot be read"),
        ("x.txt", "a", "x.txt is no table"),
    ],
)
def test_broken_tables_are_one_line(name: str, content: str, message: str):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    Path(name).write_text(content)
    with pytest.raises((UsageError, NothingToDo), match=message) as error:
        list(LabelledImages(Path(name)))
    assert "\n" not in str(error.value)


def test_what_is_no_dataset_is_refused():
    with pytest.raises(UsageError, match="no such file or folder: 'none'"):
        LabelledImages(Path("none"))
    touch("flat/a.jpg")
    with pytest.raises(UsageError, match="flat has no class folders"):
        LabelledImages(Path("flat"))
    with pytest.raises(UsageError, match="columns are for tables"):
        LabelledImages(Path("flat"), label_column="x")
    Path("t.csv").write_text("image,label\na,b\n")
    with pytest.raises(
        UsageError, match=r"no column 'x' \(--label-column\); it has 'image', 'label'"
    ):
        LabelledImages(Path("t.csv"), label_column="x")


def test_captions_of_an_image_in_one_row_or_in_several():
    touch("data/images/a.jpg", "data/images/b.jpg")
    rows: list[dict[str, Any]] = [
        {"file": "images/a.jpg", "split": "dev", "captions": ["one", " two "]},
        {"file": "images/b.jpg", "split": "train", "captions": ["three"]},
        {"file": "images/c.jpg", "split": "dev", "captions": []},
        {"file": "images/b.jpg", "split": "dev", "captions": "four"},
        {"file": "images/a.jpg", "split": "dev", "captions": ["", "five", None]},
    ]
    Path("data/index.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = CaptionedImages(Path("data/index.jsonl"), split="dev")
    assert found.captions == ["one", "two", "four", "five"]
    assert found.owners == [0, 0, 1, 0]
    assert [item.image for item in found.items()] == ["data/images/a.jpg", "data/images/b.jpg"]
    assert found.images == 2
    whole = CaptionedImages(Path("data/index.jsonl"))
    assert whole.owners == [0, 0, 1, 1, 0]
    Path("pairs.csv").write_text("image,caption\nimages/a.jpg,one\nimages/a.jpg,two\n")
    moved = CaptionedImages(Path("pairs.csv"), folder=Path("data"))
    assert [item.image for item in moved.items()] == ["data/images/a.jpg"]
    assert moved.captions == ["one", "two"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "no captions with the split 'test'"),
        ({"caption_column": "text"}, r"no column 'text' \(--caption-column\)"),
        ({"folder": Path("none")}, "--images: no such folder: 'none'"),
    ],
)
def test_captions_that_are_not_there(options: Any, message: str):
    Path("t.jsonl").write_text('{"image": "a.jpg", "captions": ["one"], "split": "dev"}\n')
    with pytest.raises(UsageError, match=message):
        CaptionedImages(Path("t.jsonl"), **options)
    Path("plain.jsonl").write_text('{"image": "a.jpg", "captions": [1]}\n')
    with pytest.raises(UsageError, match="captions must be text, but got"):
        CaptionedImages(Path("plain.jsonl"))
    with pytest.raises(UsageError, match="no column 'split'"):
        CaptionedImages(Path("plain.jsonl"), split="dev")


CLASSES = ("n01", "n02")


@pytest.mark.parametrize(
    ("name", "content", "classes", "expected"),
    [
        ("c.json", {"n02": "cat", "n01": ["dog", "hound"]}, CLASSES, ["n02:cat", "n01:dog|hound"]),
        (
            "c.json",
            {"n01": "dog", "n02": "cat", "n03": "ox"},
            CLASSES,
            ["n01:dog", "n02:cat", "n03:ox"],
        ),
        ("c.json", ["dog", ["cat", "kitten"]], CLASSES, ["n01:dog", "n02:cat|kitten"]),
        ("c.yaml", "0: dog\n1: [cat, kitten]\n", ("0", "1"), ["0:dog", "1:cat|kitten"]),
        ("c.yml", "- dog\n- cat\n- ox\n", ("0", "2"), ["0:dog", "1:cat", "2:ox"]),
        ("c.csv", "class,name\nn01,dog,hound\nn02,cat\n", CLASSES, ["n01:dog|hound", "n02:cat"]),
        ("c.tsv", "n01\tdog, a pet\nn02\tcat\n", CLASSES, ["n01:dog, a pet", "n02:cat"]),
        ("c.txt", "n01\tdog\thound\n\nn02\tcat\n", CLASSES, ["n01:dog|hound", "n02:cat"]),
        ("c.txt", "dog\r\ncat\r\n", CLASSES, ["n01:dog", "n02:cat"]),
        ("c.txt", "dog\nox\ncat\n", ("cat", "dog"), ["dog:dog", "ox:ox", "cat:cat"]),
    ],
)
def test_names_of_classes(name: str, content: Any, classes: tuple[str, ...], expected: list[str]):
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
    labels, names = named_classes(classes, Path(name), ["a {}.", "the {}."])
    assert [f"{key}:{'|'.join(value)}" for key, value in names.items()] == expected
    for label in labels:
        prompts = [f"{form} {called}." for called in names[label.name] for form in ("a", "the")]
        assert label.prompts == tuple(prompts)


def test_folders_name_themselves():
    labels, names = named_classes(("great_white_shark", "_"), None, ["a {}."])
    assert labels[0].prompts == ("a great white shark.",)
    assert labels[0].name == "great_white_shark"
    assert names["_"] == ("_",)


@pytest.mark.parametrize(
    ("name", "content", "classes", "message"),
    [
        ("c.txt", "dog\n", CLASSES, "lists 1 names for 2 classes"),
        ("c.txt", "", CLASSES, "it is empty"),
        ("c.txt", "n01\tdog\nn02\n", CLASSES, "the class 'n02' has no name"),
        ("c.txt", "n01\tdog\n", CLASSES, "does not name the class 'n02'"),
        ("c.txt", "n01\tdog\nn01\tcat\n", CLASSES, "the class 'n01' is there twice"),
        ("c.txt", "a\nb\n", ("0", "5"), "it has 2 names, but there is a class 5"),
        ("c.json", "{", CLASSES, "Expecting property name"),
        ("c.json", "3", CLASSES, "must be a table of classes and names"),
        ("c.json", '{"n01": [], "n02": "a"}', CLASSES, "one name or a list of names"),
        ("c.json", '{"n01": "", "n02": "a"}', CLASSES, "one name or a list of names"),
        ("c.yaml", "yes: a\nno: b\n", CLASSES, "a class must be text or a whole number"),
        ("c.yaml", "a: [", CLASSES, "while parsing"),
    ],
)
def test_names_that_make_no_sense(name: str, content: str, classes: Any, message: str):
    Path(name).write_text(content)
    with pytest.raises(UsageError, match=message) as error:
        named_classes(classes, Path(name), ["{}"])
    assert str(error.value).startswith(f"{name}: ")
    with pytest.raises(UsageError, match="No such file"):
        named_classes(classes, Path("none.txt"), ["{}"])
