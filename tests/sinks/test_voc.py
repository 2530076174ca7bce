"""Pascal VOC: supervision and Python's own parser read it, and the pixels are those of the challenge."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from annotary.records import Annotation, Box, Item
from annotary.sinks import SinkOptions, open_sink, read_tags
from annotary.sinks.voc import pixels
from tests.sinks.boxes import ALL, BIRD, DOG, SKY, in_one_folder, words, write


def objects_of(place: Path) -> list[tuple[str, tuple[int, ...]]]:
    root = ElementTree.parse(place).getroot()
    sides = ("xmin", "ymin", "xmax", "ymax")
    return [
        (found.findtext("name", ""), tuple(int(found.findtext(f"bndbox/{s}", "")) for s in sides))
        for found in root.iter("object")
    ]


def test_what_is_written(tmp_path):
    write("voc", tmp_path, ALL)
    root = ElementTree.parse(tmp_path / "2024/dog.xml").getroot()
    assert root.tag == "annotation"
    told = {name: root.findtext(name) for name in ("folder", "filename", "path", "segmented")}
    assert told == {
        "folder": "2024",
        "filename": "dog.jpg",
        "path": "photos/2024/dog.jpg",
        "segmented": "0",
    }
    size = [root.findtext(f"size/{side}") for side in ("width", "height", "depth")]
    assert size == ["60", "40", "3"]
    assert objects_of(tmp_path / "2024/dog.xml") == [
        ("dog", (11, 7, 40, 31)),
        ("cat", (1, 1, 60, 40)),
    ]
    assert root.findtext("object/score") == "0.875"
    assert objects_of(tmp_path / "bird.xml")[0][0] == BIRD.boxes[0].label


def test_images_without_boxes_have_a_file(tmp_path):
    """As asked for in label-studio#3959."""
    write("voc", tmp_path, [SKY])
    assert objects_of(tmp_path / "sky.xml") == []
    assert ElementTree.parse(tmp_path / "sky.xml").findtext("size/width") == "60"


def test_markup_in_labels_and_names_is_escaped(tmp_path):
    """As in pascal-voc-writer#4, where it broke the file."""
    found = Annotation("photos/a&b<.jpg", 9, 9, boxes=(Box("<a> & b", 0.5, (0, 0, 1, 1)),))
    write("voc", tmp_path, [found])
    (place,) = tmp_path.glob("*.xml")
    assert objects_of(place)[0][0] == "<a> & b"
    assert ElementTree.parse(place).findtext("filename") == "a&b<.jpg"


@pytest.mark.parametrize(
    ("xyxy", "expected"),
    [
        ((0, 0, 10, 8), (1, 1, 10, 8)),
        ((2, 3, 4, 5), (3, 4, 4, 5)),
        ((1.4, 1.6, 3.4, 3.6), (2, 3, 3, 4)),
        ((5, 5, 5, 5), (6, 6, 6, 6)),
        ((10, 8, 10, 8), (10, 8, 10, 8)),
        ((-4, -4, 20, 20), (1, 1, 10, 8)),
        ((11, 0, 12, 1), None),
    ],
)
def test_pixels_are_counted_from_one(xyxy, expected):
    assert pixels(Box("dog", 0.5, xyxy), 10, 8) == expected


@given(st.tuples(*[st.floats(0, 1)] * 4), st.integers(1, 5000), st.integers(1, 5000))
def test_pixels_are_near_and_in_the_picture(shares, width, height):
    (left, right), (top, bottom) = sorted(shares[:2]), sorted(shares[2:])
    box = Box("dog", 0.5, (left * width, top * height, right * width, bottom * height))
    found = pixels(box, width, height)
    assert found is not None
    xmin, ymin, xmax, ymax = found
    assert 1 <= xmin <= xmax <= width
    assert 1 <= ymin <= ymax <= height
    read = np.array((xmin - 1, ymin - 1, xmax, ymax))
    assert np.abs(read - box.xyxy).max() <= 1 + 1e-9
    if min(box.xyxy[2] - box.xyxy[0], box.xyxy[3] - box.xyxy[1]) >= 1:
        assert np.abs(read - box.xyxy).max() <= 0.5 + 1e-9


def test_supervision_reads_it(tmp_path):
    supervision = pytest.importorskip("supervision")
    images, files = tmp_path / "images", tmp_path / "files"
    images.mkdir()
    found = [Annotation(f"{n}.png", 60, 40, boxes=one.boxes) for n, one in enumerate(ALL)]
    for record in found:
        Image.new("RGB", (60, 40)).save(images / record.image)
    write("voc", files, found)
    dataset = supervision.DetectionDataset.from_pascal_voc(
        images_directory_path=str(images), annotations_directory_path=str(files)
    )
    for record in found:
        read = dataset.annotations[str(images / record.image)]
        assert [dataset.classes[number] for number in read.class_id] == [
            box.label for box in record.boxes
        ]
        expected = np.array([box.xyxy for box in record.boxes]).reshape(-1, 4)
        np.testing.assert_allclose(read.xyxy.reshape(-1, 4), expected, atol=1.0)
        if record.image == "0.png":  # whose boxes have a pixel and more
            np.testing.assert_allclose(read.xyxy, expected, atol=0.5)


@in_one_folder
@given(words, words)
def test_any_label_is_xml(tmp_path, first, second):
    place = tmp_path / "a.xml"
    place.unlink(missing_ok=True)
    found = (Box(first, 0.5, (0, 0, 1, 1)), Box(second, 0.25, (0, 0, 1, 1)))
    write("voc", tmp_path, [Annotation("photos/a.jpg", 9, 9, boxes=found)])
    labels = [label for label, _ in objects_of(place)]
    assert len(labels) == 2
    assert (labels[0] == labels[1]) == (first == second)
    read = list(read_tags("voc", tmp_path, SinkOptions()))
    best = {second: 0.25, first: 0.5} if first != second else {first: 0.5}
    assert [(name, dict(tags)) for name, tags in read] == [("a", best)]


def test_beside_the_image_under_its_full_name(tmp_path):
    sink = open_sink("voc", None, SinkOptions(full_names=True), ("boxes",))
    for name in ("a.jpg", "a.png"):
        item = Item.from_path(tmp_path / name)
        sink.write(item, Annotation(item.image, 60, 40, boxes=DOG.boxes))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg.xml", "a.png.xml"]
    again = open_sink("voc", None, SinkOptions(full_names=True), ("boxes",))
    assert again.holds(Item.from_path(tmp_path / "a.jpg"))


def test_files_of_others_are_counted(tmp_path):
    (tmp_path / "b.xml").write_text(
        "<annotation><object><name>owl</name></object><object><name>owl</name></object></annotation>"
    )
    assert list(read_tags("voc", tmp_path, SinkOptions())) == [("b", (("owl", None),))]
