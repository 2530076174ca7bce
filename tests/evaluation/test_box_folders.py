"""Datasets of YOLO and Pascal VOC have the boxes that were written into them, whoever wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from annotary.errors import NothingToDo, UsageError
from annotary.evaluation.box_files import DrawnBoxes, read_drawn
from tests.datasets.spots import SpotFinder, make_boxes, photo

LABELS = ("red", "green", "blue")
SPOTS = {
    "a.png": (("red", (4, 6, 30, 20)), ("blue", (40, 10, 60, 40))),
    "b.png": (("blue", (0, 0, 17, 48)),),
    "c.png": (("green", (10, 10, 51, 47)), ("green", (20, 1, 40, 8))),
    "nothing.png": (),
}


def by_name(drawn: DrawnBoxes) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """Of each image its labels and boxes."""
    found: dict[str, list[tuple[str, tuple[float, ...]]]] = {
        Path(image.name).name: [] for image in drawn.images
    }
    for box in drawn.boxes:
        found[Path(drawn.images[box.image].name).name].append((drawn.labels[box.label], box.xywh))
    return found


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_what_annotary_label_makes_is_read(tmp_path, form):
    for name, spots in SPOTS.items():
        photo(tmp_path / "photos" / name, *spots, size=(64, 48))
    task = SpotFinder(LABELS)
    make_boxes(
        *(tmp_path / "photos", tmp_path / "out", form),
        labels=LABELS,
        task=task,
        split="train=0.5,val=0.5",
    )
    parts = [read_drawn(tmp_path / "out", split=part) for part in ("train", "val")]
    found = by_name(parts[0]) | by_name(parts[1])
    assert len(parts[0].images) + len(parts[1].images) == len(SPOTS)
    assert set(found) == set(SPOTS)
    for name, spots in SPOTS.items():
        boxes = {label: [] for label, _ in spots}
        for label, xywh in found[name]:
            boxes[label].append(tuple(round(edge, 2) for edge in xywh))
        for label, (left, top, right, bottom) in spots:
            assert (left, top, right - left, bottom - top) in boxes[label]
    assert by_name(read_drawn(tmp_path / "out")) == by_name(parts[1])
    for part in parts:
        for image, item in zip(part.images, part.items(), strict=True):
            assert image.size == (64, 48)
            assert item.ok if hasattr(item, "ok") else item.path.is_file()
    with pytest.raises(UsageError, match=r"no part 'dev' \(--split\); it has train, val"):
        read_drawn(tmp_path / "out", split="dev")


def yolo(folder: Path, lines: str, data: str = "names: [cat, dog]\nval: images/val\n") -> Path:
    """A dataset in the other usual layout, with one image that lies on its side."""
    (folder / "images" / "val").mkdir(parents=True)
    (folder / "labels" / "val").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(folder / "images" / "val" / "a.jpg", exif=exif)
    (folder / "labels" / "val" / "a.txt").write_text(lines)
    (folder / "data.yaml").write_text(data)
    return folder


def test_yolo_of_other_hands(tmp_path):
    lines = "1 0.5 0.25 0.5 0.5\n0 0.1 0.1 0.6 0.1 0.6 0.3 0.1 0.3\n\n0 0.5 0.5 0.2 0.2 0.9\n"
    drawn = read_drawn(yolo(tmp_path, lines))
    (image,) = drawn.images
    assert image.size == (20, 40)  # upright
    assert [drawn.labels[box.label] for box in drawn.boxes] == ["dog", "cat", "cat"]
    assert drawn.boxes[0].xywh == pytest.approx((5, 0, 10, 20))
    assert drawn.boxes[1].xywh == pytest.approx((2, 4, 10, 8))  # the box around an outline
    assert drawn.boxes[2].xywh == pytest.approx((8, 16, 4, 8))
    (tmp_path / "data.yaml").write_text("path: .\nnames: {0: cat, 1: dog}\ntest: list.txt\nval:\n")
    (tmp_path / "list.txt").write_text("./images/val/a.jpg\n")
    again = read_drawn(tmp_path / "data.yaml")
    assert again.boxes == drawn.boxes
    (tmp_path / "labels" / "val" / "a.txt").unlink()
    assert read_drawn(tmp_path).boxes == []


@pytest.mark.parametrize(
    ("lines", "data", "told"),
    [
        ("0 1 2", None, "line 1 is no class"),
        ("cat 0.5 0.5 0.1 0.1", None, "line 1 is no class"),
        ("7 0.5 0.5 0.1 0.1", None, "has no class 7"),
        ("0 0.5 0.5 -0.1 0.1", None, "a box must be"),
        ("", "val: images/val", "no names"),
        ("", "names: [cat", "data.yaml"),
        ("", "names: [cat]\nval: none", "no such folder"),
        ("", "names: [cat]\nval: none.txt", "No such file"),
        ("", "names: [cat]", "no part to measure on"),
        ("", "- 5", "no names"),
    ],
)
def test_broken_yolo_is_told_in_a_line(tmp_path, lines, data, told):
    folder = yolo(tmp_path, lines, *([] if data is None else [data]))
    with pytest.raises(UsageError, match=told) as error:
        read_drawn(folder)
    assert "\n" not in str(error.value)


VOC = """<annotation><filename>a.jpg</filename><size><width>100</width><height>50</height></size>
<object><name>cat</name><bndbox><xmin>1</xmin><ymin>11</ymin><xmax>10</xmax><ymax>20</ymax></bndbox></object>
<object><name>dog</name><difficult>1</difficult>
<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""


def voc(folder: Path, text: str) -> Path:
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "a.xml").write_text(text)
    return folder


def test_voc_of_other_hands(tmp_path):
    drawn = read_drawn(voc(tmp_path, VOC))
    assert drawn.labels == ["cat", "dog"]
    assert [tuple(box.xywh) for box in drawn.boxes] == [(0, 10, 10, 10), (4, 4, 5, 5)]
    assert [box.is_crowd for box in drawn.boxes] == [False, True]
    assert drawn.images[0].size == (100, 50)
    assert drawn.folder == str(tmp_path / "JPEGImages")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("a\n")
    (tmp_path / "ImageSets" / "Main" / "cat_val.txt").write_text("a -1\n")
    assert read_drawn(tmp_path).boxes == drawn.boxes
    assert read_drawn(tmp_path, split="cat_val").boxes == drawn.boxes
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    with pytest.raises(UsageError, match=r"b\.xml: No such file"):
        read_drawn(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<annotation>", "no annotation of Pascal VOC"),
        (VOC.replace("<xmin>5</xmin>", ""), "no bndbox/xmin"),
        (VOC.replace("<name>cat</name>", ""), "no name"),
        (VOC.replace("<xmin>5</xmin>", "<xmin>x</xmin>"), "could not convert"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + VOC, "entities"),
        (VOC.replace("a.jpg", ""), "no filename"),
    ],
)
def test_broken_voc_is_told_in_a_line(tmp_path, text, told):
    with pytest.raises(UsageError, match=told) as error:
        read_drawn(voc(tmp_path, text))
    assert "\n" not in str(error.value)


def test_folders_that_are_no_datasets(tmp_path):
    with pytest.raises(UsageError, match="is no dataset of boxes; expected COCO JSON"):
        read_drawn(tmp_path)
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(NothingToDo, match="has no images"):
        read_drawn(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UsageError, match="--split is for datasets"):
        read_drawn(tmp_path / "a.json", split="val")
