"""Formats of boxes as `annotary detect` writes them, with a small detector that really looks at pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from annotary.cli import annotary
from annotary.cli._annotating import Loaded
from annotary.records import Annotation, from_line
from tests.sinks.test_cvat import imported
from tests.sinks.test_label_studio import boxes_of as percent_boxes_of
from tests.sinks.test_label_studio import tasks_of
from tests.sinks.test_voc import objects_of
from tests.sinks.test_yolo import boxes_of
from tests.small_detector import SmallDetector
from tests.small_encoder import COLOURS

SIZE = (128, 64)
RED, BLUE = (8, 16, 40, 48), (96, 32, 120, 40)
TURNED = "more/turned.jpg"
ORIENTATION = 274


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A picture with a red and a blue spot, the same stored on its side, and a grey one."""
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    detector = SmallDetector()
    model = Loaded(detector, "files", "files")
    monkeypatch.setattr("annotary.cli.detect.loaded", lambda name, options: model)
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    picture = Image.new("RGB", SIZE, (128, 128, 128))
    picture.save(folder / "grey.png")
    picture.paste(COLOURS["red"], RED)
    picture.paste(COLOURS["blue"], BLUE)
    picture.save(folder / "spots.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # it is to be turned right by a quarter to be upright
    stored = picture.transpose(Image.Transpose.ROTATE_90)
    stored.save(folder / TURNED, exif=exif, quality=100, subsampling=0)
    return Path("photos")


def detect(photos: Path, *arguments: object) -> None:
    """Run twice, of which the second time goes on, and finds nothing to do."""
    command = ["detect", photos, "--labels", "blue, green, red", *arguments, "--quiet"]
    for _ in range(2):
        result = CliRunner().invoke(annotary, list(map(str, command)))
        assert result.exit_code == 0, (result.output, result.exception)


@pytest.fixture
def found(photos) -> dict[str, Annotation]:
    """What was found, by the place below the folder."""
    detect(photos, "--output", "found.jsonl")
    records = [from_line(line) for line in Path("found.jsonl").read_bytes().splitlines()]
    return {record.image.removeprefix("photos/"): record for record in records}  # type: ignore[misc]


def test_boxes_are_of_the_upright_picture(found):
    """As shown, whatever EXIF says of how it is stored (fiftyone#3778, X-AnyLabeling#447)."""
    assert set(found) == {"grey.png", TURNED, "spots.png"}
    assert found["grey.png"].boxes == ()
    for name in (TURNED, "spots.png"):
        record = found[name]
        assert (record.width, record.height) == SIZE
        edges = {box.label: box.xyxy for box in record.boxes}
        assert edges == {"red": pytest.approx(RED, abs=2.1), "blue": pytest.approx(BLUE, abs=2.1)}


def test_coco(photos, found):
    detect(photos, "--format", "coco", "--output", "boxes.json")
    value = json.loads(Path("boxes.json").read_bytes())
    assert [entry["name"] for entry in value["categories"]] == ["blue", "green", "red"]
    assert {image["file_name"] for image in value["images"]} == set(found)
    assert all((image["width"], image["height"]) == SIZE for image in value["images"])
    numbers = {image["file_name"]: image["id"] for image in value["images"]}
    for name, record in found.items():
        own = [entry for entry in value["annotations"] if entry["image_id"] == numbers[name]]
        assert [(entry["bbox"][0], entry["score"]) for entry in own] == [
            (box.xyxy[0], box.score) for box in record.boxes
        ]
    assert len({entry["id"] for entry in value["annotations"]}) == len(value["annotations"]) == 4


def test_yolo(photos, found):
    detect(photos, "--format", "yolo", "--output", "dataset")
    names = yaml.safe_load(Path("dataset/data.yaml").read_text())["names"]
    assert names == {0: "blue", 1: "green", 2: "red"}
    assert Path("dataset/labels/grey.txt").read_bytes() == b""
    for name, record in found.items():
        read = boxes_of(Path("dataset/labels", name).with_suffix(".txt"), *SIZE)
        assert [names[number] for number, _ in read] == [box.label for box in record.boxes]
        for (_, edges), box in zip(read, record.boxes, strict=True):
            assert edges == pytest.approx(box.xyxy, abs=1e-3)


def test_voc_beside_the_images(photos, found):
    detect(photos, "--format", "voc")
    for name, record in found.items():
        read = objects_of((photos / name).with_suffix(".xml"))
        assert [label for label, _ in read] == [box.label for box in record.boxes]
        for (_, (xmin, ymin, xmax, ymax)), box in zip(read, record.boxes, strict=True):
            assert (xmin - 1, ymin - 1, xmax, ymax) == pytest.approx(box.xyxy, abs=0.51)


def test_editors(photos, found):
    detect(photos, "--format", "label-studio", "--output", "tasks.json")
    detect(photos, "--format", "cvat", "--output", "annotations.xml")
    for task in tasks_of(Path("tasks.json")):
        record = found[task["data"]["name"].removeprefix("photos/")]
        assert task["predictions"][0]["model_version"] == record.sources["boxes"]
        for (label, _, edges), box in zip(percent_boxes_of(task), record.boxes, strict=True):
            assert label == box.label
            assert edges == pytest.approx(box.xyxy, abs=1e-5)
    read = imported(Path("annotations.xml"))
    assert {image["name"] for image, _ in read} == set(found)
    for image, shapes in read:
        for shape, box in zip(shapes, found[image["name"]].boxes, strict=True):
            assert (shape.label, shape.points) == (box.label, pytest.approx(box.xyxy))


def test_a_row_each(photos, found):
    detect(photos, "--output", "boxes.csv")
    rows = Path("boxes.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 + 2 + 1
    result = CliRunner().invoke(annotary, ["tags", "stats", "boxes.csv", "--json"])
    told = json.loads(result.output)
    assert {one["name"]: one["images"] for one in told["tags"]} == {"red": 2, "blue": 2}


def test_what_cannot_hold_boxes_is_told(photos):
    result = CliRunner().invoke(
        annotary, ["detect", str(photos), "--labels", "red", "--format", "txt"]
    )
    assert str(result.exception) == (
        "--format txt cannot hold boxes; use coco, csv, cvat, imagefolder, json, json-files, jsonl, label-studio,"
        " parquet, voc, webdataset, yolo"
    )
