"""CVAT for images: a reader that goes through the file as CVAT does finds images and boxes; runs go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
from hypothesis import given

from annotary.records import Annotation, Box
from annotary.sinks import SinkOptions, read_tags
from annotary.sinks._xml import recovered
from tests.sinks.boxes import ALL, BIRD, DOG, SKY, in_one_folder, several, write


class Shape(NamedTuple):
    """A rectangle as CVAT imports it."""

    label: str
    points: tuple[float, ...]
    attributes: dict[str, str]


def imported(path: Path) -> list[tuple[dict[str, str], list[Shape]]]:
    """The attributes of each image and its shapes.

    Written from https://docs.cvat.ai/docs/manual/advanced/xml_format/ (version 1.1, annotation), going through the
    file event by event: what a box must have are a label, whether it is occluded, and four edges; the order on the z
    axis and the source may be there; attributes are elements in it.
    """
    events = iter(ElementTree.iterparse(path, events=("start", "end")))
    _, root = next(events)
    assert root.tag == "annotations"
    found: list[tuple[dict[str, str], list[Shape]]] = []
    attributes: dict[str, str] = {}
    version = ""
    for event, element in events:
        if event == "start" and element.tag == "image":
            assert int(element.attrib["id"]) == len(found)
            assert {"name", "width", "height"} <= element.attrib.keys()
            found.append((dict(element.attrib), []))
        elif event == "start" and element.tag == "box":
            attributes = {}
        elif event == "end" and element.tag == "attribute" and found:
            attributes[element.attrib["name"]] = element.text or ""
        elif event == "end" and element.tag == "box":
            assert element.attrib["occluded"] == "0"
            assert int(element.attrib["z_order"]) == 0
            assert element.attrib["source"] in ("manual", "auto", "semi-auto")
            points = tuple(float(element.attrib[edge]) for edge in ("xtl", "ytl", "xbr", "ybr"))
            found[-1][1].append(Shape(element.attrib["label"], points, attributes))
        elif event == "end" and element.tag == "version":
            version = element.text or ""
    assert version == "1.1"
    return found


def labels_of(path: Path) -> list[str]:
    root = ElementTree.parse(path).getroot()
    return [name.text or "" for name in root.iterfind("meta/task/labels/label/name")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.xml"


def test_what_is_written(path):
    write("cvat", path, ALL)
    dog, sky, bird = imported(path)
    assert dog == (
        {
            "id": "0",
            "name": "2024/dog.jpg",
            "width": "60",
            "height": "40",
            "path": "photos/2024/dog.jpg",
        },
        [
            Shape("dog", (10.25, 5.5, 40.0, 30.75), {"score": "0.875"}),
            Shape("cat", (0.0, 0.0, 60.0, 40.0), {"score": "0.5"}),
        ],
    )
    assert sky[0]["name"] == "sky.jpg"
    assert bird[1][0].label == BIRD.boxes[0].label
    assert labels_of(path) == ["cat", "fish", "dog", BIRD.boxes[0].label]
    assert ElementTree.parse(path).findtext("meta/task/size") == "3"


def test_images_without_boxes_are_there(path):
    """So that they are not taken for images that nobody has looked at (label-studio#1470 of another program)."""
    write("cvat", path, [SKY])
    ((image, shapes),) = imported(path)
    assert (image["name"], shapes) == ("sky.jpg", [])


def test_images_are_named_as_a_task_of_their_folder_names_them(path):
    """CVAT finds them by name (cvat#1807), and refuses the file where one is not in the task (cvat#9307)."""
    write("cvat", path, [DOG, SKY])
    assert [image["name"] for image, _ in imported(path)] == ["2024/dog.jpg", "sky.jpg"]


def test_a_run_that_goes_on_writes_the_same(path):
    once = path.with_name("once.xml")
    write("cvat", once, ALL)
    write("cvat", path, ALL[:1], is_killed=True)
    write("cvat", path, ALL[:2])
    write("cvat", path, ALL)
    assert imported(path) == imported(once)
    assert path.read_bytes() == once.read_bytes()
    write("cvat", path, ALL)
    assert path.read_bytes() == once.read_bytes()


@in_one_folder
@given(several)
def test_anything_comes_back(tmp_path, found):
    path = tmp_path / "annotations.xml"
    path.unlink(missing_ok=True)
    write("cvat", path, found[:1], classes=())
    write("cvat", path, found[:2], classes=(), is_killed=True)
    write("cvat", path, found, classes=())
    write("cvat", path, found, classes=())
    read = imported(path)
    names = [recovered(image.get("path", image["name"])) for image, _ in read]
    assert names == [record.image for record in found]
    for (_, shapes), record in zip(read, found, strict=True):
        assert len(shapes) == len(record.boxes)
        for shape, box in zip(shapes, record.boxes, strict=True):
            assert recovered(shape.label) == box.label
            assert shape.points == pytest.approx(box.xyxy, rel=1e-9, abs=1e-300)
            assert float(shape.attributes["score"]) == pytest.approx(
                box.score, rel=1e-5, abs=1e-300
            )
    listed = [recovered(label) for label in labels_of(path)]
    assert len(set(listed)) == len(listed)
    assert set(listed) == {box.label for record in found for box in record.boxes}
    tags: dict[str, Any] = dict(read_tags("cvat", path, SinkOptions()))
    assert list(tags) == names
    assert [set(dict(one)) for one in tags.values()] == [
        {box.label for box in record.boxes} for record in found
    ]


def test_what_looks_like_an_escape_is_told_from_one(path):
    names = ["\x01", "\\u0001", "\\", "\\u005cu0001", "a\r\n\tb"]
    found = [
        Annotation(f"photos/{name}", 9, 9, boxes=(Box(name, 0.5, (0, 0, 1, 1)),)) for name in names
    ]
    write("cvat", path, found, classes=())
    write("cvat", path, found, classes=())
    read = imported(path)
    assert [recovered(image["path"]) for image, _ in read] == [record.image for record in found]
    assert [recovered(shapes[0].label) for _, shapes in read] == names


def test_boxes_are_cut_at_the_edge_of_the_picture(path):
    over = (Box("dog", 0.5, (-5, 5, 15, 25)), Box("cat", 0.25, (11, 0, 12, 1)))
    write("cvat", path, [Annotation("photos/a.jpg", 10, 10, boxes=over)])
    ((_, shapes),) = imported(path)
    assert [(shape.label, shape.points) for shape in shapes] == [("dog", (0, 5, 10, 10))]
