"""Label Studio: a reader written from its documentation takes the tasks, and a run that is cut goes on."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given

from annotary.errors import OutputError
from annotary.records import Annotation, Box
from annotary.sinks import SinkOptions, read_tags
from tests.sinks.boxes import ALL, BIRD, DOG, SKY, in_one_folder, several, write


def tasks_of(path: Path) -> list[dict[str, Any]]:
    """The tasks of an import, checked against https://labelstud.io/guide/predictions and /guide/task_format.

    `data` refers to what the labelling interface shows; each prediction has a `result`, a `model_version` and perhaps a
    `score`; each region of it an `id`, the names of the two tags of the interface, a `type`, the size of the picture,
    and a `value` in per cent.
    """
    tasks = json.loads(path.read_bytes())
    assert isinstance(tasks, list)
    for task in tasks:
        assert isinstance(task["data"]["image"], str)
        assert "annotations" not in task  # which would count as done by a person
        (prediction,) = task["predictions"]
        assert isinstance(prediction["model_version"], str)
        assert 0 <= prediction.get("score", 0) <= 1
        regions = prediction["result"]
        assert len({region["id"] for region in regions}) == len(regions)
        for region in regions:
            assert (region["from_name"], region["to_name"]) == ("label", "image")
            assert region["type"] == "rectanglelabels"
            assert region["image_rotation"] == region["value"]["rotation"] == 0
            value = region["value"]
            assert all(0 <= value[side] <= 100 for side in ("x", "y", "width", "height"))
            assert value["x"] + value["width"] <= 100 + 2e-6
            assert value["y"] + value["height"] <= 100 + 2e-6
            assert isinstance(value["rectanglelabels"], list)
    return tasks


def boxes_of(task: dict[str, Any]) -> list[tuple[str, float, tuple[float, ...]]]:
    """Label, score and edges in pixels, by the formula of the guide: pixels = per cent / 100 * original size."""
    found = []
    for region in task["predictions"][0]["result"]:
        value, width, height = region["value"], region["original_width"], region["original_height"]
        left, top = value["x"] / 100 * width, value["y"] / 100 * height
        right, bottom = left + value["width"] / 100 * width, top + value["height"] / 100 * height
        found.append((value["rectanglelabels"][0], region["score"], (left, top, right, bottom)))
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.json"


def test_what_is_written(path):
    write("label-studio", path, ALL)
    dog, sky, _ = tasks_of(path)
    assert dog["data"] == {
        "image": "/data/local-files/?d=photos/2024/dog.jpg",
        "name": "photos/2024/dog.jpg",
    }
    (prediction,) = dog["predictions"]
    assert prediction["model_version"] == "owl@1"
    assert prediction["score"] == pytest.approx((0.875 + 0.5) / 2, abs=1e-6)
    assert prediction["result"][1]["value"] == {
        "x": 0.0,
        "y": 0.0,
        "width": 100.0,
        "height": 100.0,
        "rotation": 0,
        "rectanglelabels": ["cat"],
    }
    assert sky["predictions"] == [{"model_version": "owl@1", "result": []}]


def test_all_boxes_are_one_prediction(path):
    """Of several predictions of one version Label Studio shows one (label-studio#8012)."""
    write("label-studio", path, [DOG])
    (task,) = tasks_of(path)
    assert len(task["predictions"]) == 1
    assert len(boxes_of(task)) == 2


def test_regions_have_numbers_of_their_own(path):
    """Without an `id` they are not shown (label-studio-transformers#12)."""
    write("label-studio", path, [DOG])
    assert [one["id"] for one in tasks_of(path)[0]["predictions"][0]["result"]] == ["box1", "box2"]


def test_an_image_without_boxes_is_a_task(path):
    """Others lose it, or crash (label-studio#1841, label-studio#2597)."""
    write("label-studio", path, [SKY])
    write("label-studio", path, [SKY])
    assert [boxes_of(task) for task in tasks_of(path)] == [[]]
    assert list(read_tags("label-studio", path, SinkOptions())) == [(SKY.image, ())]


@in_one_folder
@given(several)
def test_anything_comes_back(tmp_path, found):
    path = tmp_path / "tasks.json"
    path.unlink(missing_ok=True)
    write("label-studio", path, found[:1])
    write("label-studio", path, found)
    tasks = tasks_of(path)
    assert [task["data"]["name"] for task in tasks] == [record.image for record in found]
    for task, record in zip(tasks, found, strict=True):
        assert len(boxes_of(task)) == len(record.boxes)
        for (label, score, edges), box in zip(boxes_of(task), record.boxes, strict=True):
            assert (label, score) == (box.label, box.score)
            # Six digits of a per cent, twice.
            assert edges == pytest.approx(box.xyxy, abs=1e-8 * max(record.width, record.height))
    tags = [dict(one) for _, one in read_tags("label-studio", path, SinkOptions())]
    assert [set(one) for one in tags] == [{box.label for box in r.boxes} for r in found]


def test_cut_anywhere_it_is_continued(path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    write("label-studio", path, ALL)
    whole = path.read_bytes()
    for end in range(0, len(whole), 3):
        path.write_bytes(whole[:end])
        write("label-studio", path, ALL)
        assert path.read_bytes() == whole, f"cut after {end} bytes"


def test_a_file_of_records_is_not_continued(path):
    path.write_text('[\n{"image": "a.jpg", "width": 4, "height": 3},\n{"image": "b.jpg"}\n]\n')
    with pytest.raises(OutputError, match="line 2 is no task of an image"):
        write("label-studio", path, [])


def test_where_pictures_are_served(path):
    strange = os.fsdecode(b"./photos/a \xff&#?.jpg")
    names = (strange, "https://example.com/a b.jpg", "s3://bucket/a.jpg")
    write("label-studio", path, [Annotation(name, 9, 9) for name in names])
    local, address, bucket = (task["data"]["image"] for task in tasks_of(path))
    asked = parse_qs(urlsplit(local).query, errors="surrogateescape")["d"]
    assert asked == [strange.removeprefix("./")]
    assert (address, bucket) == names[1:]


def test_boxes_are_cut_at_the_edge_of_the_picture(path):
    over = (Box("dog", 0.5, (-5, 5, 15, 25)), Box("cat", 0.25, (11, 0, 12, 1)))
    write("label-studio", path, [Annotation("a.jpg", 10, 10, boxes=over)])
    ((label, _, edges),) = boxes_of(tasks_of(path)[0])
    assert label == "dog"
    assert edges == pytest.approx((0, 5, 10, 10))
    assert math.isclose(tasks_of(path)[0]["predictions"][0]["score"], 0.375)


def test_labels_with_quotes_and_markup(path):
    write("label-studio", path, [BIRD])
    assert boxes_of(tasks_of(path)[0])[0][0] == BIRD.boxes[0].label
