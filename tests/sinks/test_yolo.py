"""YOLO: supervision and a reader of the format's own read it; background is there, and classes keep their numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from PIL import Image

from annotary.errors import OutputError, SidecarError, UsageError
from annotary.records import Annotation, Box, Item
from annotary.sinks import SinkOptions, open_sink, read_tags
from tests.sinks.boxes import ALL, BIRD, DOG, SKY, in_one_folder, several, write


def classes_of(folder: Path) -> dict[int, str]:
    value = yaml.safe_load((folder / "data.yaml").read_text("utf-8"))
    assert value["nc"] == len(value["names"])
    return value["names"]


def boxes_of(place: Path, width: int, height: int) -> list[tuple[int, tuple[float, ...]]]:
    """Class and edges in pixels of each line, as Ultralytics describes the format and checks it."""
    found = []
    for line in place.read_text().splitlines():
        number, *numbers = line.split()
        centre_x, centre_y, wide, high = map(float, numbers)
        assert all(0 <= value <= 1 for value in (centre_x, centre_y, wide, high))
        left, top = (centre_x - wide / 2) * width, (centre_y - high / 2) * height
        found.append((int(number), (left, top, left + wide * width, top + high * height)))
    return found


def test_what_is_written(tmp_path):
    write("yolo", tmp_path, ALL)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    labels = {"labels/2024/dog.txt", "labels/sky.txt", "labels/bird.txt"}
    assert files == {"data.yaml", *labels}
    lines = (tmp_path / "labels/2024/dog.txt").read_text().splitlines()
    assert lines[0] == "2 0.418750 0.453125 0.495833 0.631250"
    assert lines[1] == "0 0.500000 0.500000 1.000000 1.000000"
    assert classes_of(tmp_path) == {0: "cat", 1: "fish", 2: "dog", 3: BIRD.boxes[0].label}


def test_background_has_a_file_without_lines(tmp_path):
    """As asked for in X-AnyLabeling#861, and where others lose the image (fiftyone#5396, label-studio#2597)."""
    write("yolo", tmp_path, [SKY])
    assert (tmp_path / "labels/sky.txt").read_bytes() == b""


def test_nothing_found_at_all_is_no_error(tmp_path):
    """An empty result crashed others (label-studio#1841)."""
    write("yolo", tmp_path, [SKY], classes=())
    assert yaml.safe_load((tmp_path / "data.yaml").read_text())["names"] == {}
    write("yolo", tmp_path / "none", [])
    assert classes_of(tmp_path / "none") == {0: "cat", 1: "fish", 2: "dog"}


def test_supervision_reads_it(tmp_path):
    supervision = pytest.importorskip("supervision")
    images = tmp_path / "images"
    images.mkdir()
    found = [Annotation(f"{n}.jpg", 60, 40, boxes=one.boxes) for n, one in enumerate(ALL)]
    for record in found:
        Image.new("RGB", (60, 40)).save(images / record.image)
    write("yolo", tmp_path, found)
    dataset = supervision.DetectionDataset.from_yolo(
        images_directory_path=str(images),
        annotations_directory_path=str(tmp_path / "labels"),
        data_yaml_path=str(tmp_path / "data.yaml"),
    )
    assert dataset.classes == list(classes_of(tmp_path).values())
    for record in found:
        read = dataset.annotations[str(images / record.image)]
        labels = [dataset.classes[number] for number in read.class_id] if len(read) else []
        assert labels == [box.label for box in record.boxes]
        expected = np.array([box.xyxy for box in record.boxes]).reshape(-1, 4)
        np.testing.assert_allclose(read.xyxy.reshape(-1, 4), expected, atol=1e-3)


@in_one_folder
@given(several)
def test_boxes_and_classes_come_back(tmp_path, found):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    images = [Annotation(f"{n}.jpg", r.width, r.height, boxes=r.boxes) for n, r in enumerate(found)]
    write("yolo", folder, images[:1], classes=(), is_killed=True)
    write("yolo", folder, images, classes=())
    names = classes_of(folder)
    for number, record in enumerate(found):
        read = boxes_of(folder / f"labels/{number}.txt", record.width, record.height)
        assert [names[one] for one, _ in read] == [box.label for box in record.boxes]
        for (_, edges), box in zip(read, record.boxes, strict=True):
            # Six digits: half a millionth of the picture for the centre, and half of that for the width.
            assert edges == pytest.approx(box.xyxy, abs=0.8e-6 * max(record.width, record.height))
    tags = {
        name: {label for label, _ in one} for name, one in read_tags("yolo", folder, SinkOptions())
    }
    assert tags == {str(n): {b.label for b in record.boxes} for n, record in enumerate(found)}


def test_boxes_are_cut_at_the_edge_of_the_picture(tmp_path):
    """Trainers refuse numbers that are not in 0..1."""
    over = Annotation(
        "a.jpg",
        10,
        10,
        boxes=(Box("dog", 0.5, (-5, -5, 5, 25)), Box("cat", 0.5, (-9, 0, -1, 5))),
    )
    write("yolo", tmp_path, [over])
    assert boxes_of(tmp_path / "labels/a.txt", 10, 10) == [(2, pytest.approx((0, 0, 5, 10)))]


def test_classes_keep_their_numbers(tmp_path):
    write("yolo", tmp_path, [DOG], classes=("dog", "cat"))
    before = (tmp_path / "labels/2024/dog.txt").read_bytes()
    write("yolo", tmp_path, ALL, classes=("fish", "cat"))
    label = BIRD.boxes[0].label
    assert classes_of(tmp_path) == {0: "dog", 1: "cat", 2: "fish", 3: label}
    assert (tmp_path / "labels/2024/dog.txt").read_bytes() == before
    # Also where files are written anew: others that stay may be of these numbers.
    write("yolo", tmp_path, [DOG], classes=("cat", "dog"), on_existing="overwrite")
    assert (tmp_path / "labels/2024/dog.txt").read_bytes() == before


def test_a_class_is_named_before_it_is_used(tmp_path):
    """So that a kill leaves no number that nobody knows."""
    sink = open_sink("yolo", tmp_path, SinkOptions(), ("boxes",))
    item = Item("a.jpg", path=Path("a.jpg"), relative="a.jpg")
    blocked = tmp_path / "labels/a.txt"
    blocked.mkdir(parents=True)
    with pytest.raises(SidecarError):
        sink.write(item, Annotation("a.jpg", 9, 9, boxes=(Box("owl", 0.5, (0, 0, 1, 1)),)))
    assert classes_of(tmp_path) == {0: "owl"}


def test_a_list_of_classes_of_someone_else(tmp_path):
    """Its numbers count, and it is not changed."""
    place = tmp_path / "data.yaml"
    text = "path: elsewhere\nnames: [bird, dog, cat, fish]\n"
    place.write_text(text)
    write("yolo", tmp_path, [DOG], classes=("dog",))
    assert (tmp_path / "labels/2024/dog.txt").read_text().split()[0] == "1"
    assert place.read_text() == text
    with pytest.raises(OutputError, match=r"data.yaml lacks owl, and is not as annotary writes it"):
        write("yolo", tmp_path, [SKY], classes=("owl",))
    for text in ("names: 3", "names: [a, a]", "names: {1: a}", "- a", "names: [", "\udcff"):
        place.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(OutputError, match="names no classes"):
            write("yolo", tmp_path, [SKY])


def test_what_was_added_to_the_list_of_classes_stays(tmp_path):
    """Such as where the images are, or how colours are changed in training."""
    write("yolo", tmp_path, [DOG], classes=("dog",))
    place = tmp_path / "data.yaml"
    text = place.read_text().replace("val: images", "val: images/val") + "hsv_h: 0.1\n"
    place.write_text(text)
    with pytest.raises(OutputError, match=r"lacks owl, and is not as annotary writes it"):
        write("yolo", tmp_path, [SKY], classes=("dog", "owl"))
    assert place.read_text() == text
    write("yolo", tmp_path, [SKY], classes=("dog",))
    assert place.read_text() == text


def test_boxes_of_classes_that_nobody_knows(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 1 1\n")
    with pytest.raises(OutputError, match=r"has boxes, and no data\.yaml says which classes"):
        write("yolo", tmp_path, [SKY])
    assert not (tmp_path / "data.yaml").exists()


def test_two_images_of_one_name(tmp_path):
    found = [Annotation(name, 9, 9) for name in ("a.jpg", "a.png")]
    with pytest.raises(
        SidecarError, match=r"wants the sidecar .*; rename one, as YOLO finds labels"
    ):
        write("yolo", tmp_path, found)
    read = tmp_path / "labels/list.txt"
    read.write_text("")
    sink = open_sink("yolo", tmp_path, SinkOptions(), ("boxes",))
    sink.protect([read])  # type: ignore[attr-defined]
    with pytest.raises(SidecarError, match=r"which is read; say --output$"):
        sink.write(Item("list.jpg", path=Path("x"), relative="list.jpg"), SKY)
    with pytest.raises(UsageError, match="--format yolo needs --output FOLDER"):
        open_sink("yolo", None, SinkOptions(), ("boxes",))


def test_ultralytics_would_find_the_labels(tmp_path):
    """Its rule: the last `images` of an image's path becomes `labels`, and the suffix `.txt`."""
    write("yolo", tmp_path, [DOG])
    image = (
        tmp_path / yaml.safe_load((tmp_path / "data.yaml").read_text())["train"]
    ) / "2024/dog.jpg"
    before, _, after = str(image).rpartition("/images/")
    assert Path(f"{before}/labels/{after}").with_suffix(".txt").is_file()
