"""The detection model for autodistill: its interface, and none of what goes wrong in the datasets of the original."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from annotary.errors import OutputError, UnreadableImage, UsageError
from tests.datasets.spots import photo
from tests.small_detector import SmallDetector
from tests.small_encoder import COLOURS, SmallEncoder

# Without the system library that OpenCV draws with, both are installed and cannot be imported.
pytest.importorskip("supervision", exc_type=ImportError)
pytest.importorskip("autodistill", exc_type=ImportError)

import supervision as sv

from annotary.autodistill import AnnotaryDetection, CaptionOntology

ONTOLOGY = {"red": "warm", "a red wall": "warm", "blue": "cold"}


@pytest.fixture
def model(monkeypatch, tmp_path):
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))
    return AnnotaryDetection(CaptionOntology(ONTOLOGY), model=SmallDetector())


@pytest.fixture
def images(tmp_path):
    """Photos of two kinds, one in a folder; one has a name with two dots in a row, one shows a very small thing."""
    folder = tmp_path / "images"
    for i in range(6):
        photo(
            folder / f"red-{i}.jpg",
            ("red", (8, 8, 32, 24 + 8 * (i // 3))),
            size=(64, 64),
            quality=98,
            subsampling=0,
        )
    for i in range(3):
        photo(folder / "deep" / f"blue..{i}.png", ("blue", (8, 8, 40 + i, 24)), size=(64, 64))
    photo(folder / "small.png", ("red", (8, 8, 12, 12)), ("blue", (30, 30, 60, 60)), size=(64, 64))
    photo(folder / "nothing.png", size=(64, 64))
    return folder


def test_boxes_are_had_of_whatever_is_an_image(model, images):
    path = images / "small.png"
    with Image.open(path) as opened:
        opened.load()
    bgr = np.asarray(opened)[..., ::-1]
    for given in (path, str(path), path.read_bytes(), opened, bgr):
        found = model.predict(given)
        assert isinstance(found, sv.Detections)
        assert sorted(found.xyxy.tolist()) == [[8, 8, 12, 12], [30, 30, 60, 60]]
        names = [model.classes[number] for number in found.class_id]
        assert dict(zip(names, found.xyxy[:, 0], strict=True)) == {"warm": 8, "cold": 30}
        assert found.confidence.dtype == np.float32
        assert list(found.confidence) == sorted(found.confidence, reverse=True)
    assert model.ontology.classes() == model.classes == ["warm", "cold"]
    nothing = model.predict(images / "nothing.png")
    assert len(nothing) == 0
    assert nothing.xyxy.shape == (0, 4)
    assert len(model.predict(path, confidence=1.0)) == 0


def test_a_folder_becomes_a_dataset_and_the_images_stay(model, images, tmp_path):
    before = {path: path.read_bytes() for path in images.rglob("*.*")}
    read = model.label(images)
    assert before == {path: path.read_bytes() for path in images.rglob("*.*")}
    output = tmp_path / "images_labeled"
    assert isinstance(read, sv.DetectionDataset)
    assert read.classes == ["warm", "cold"]
    assert len(read) == 11
    counts = {Path(path).name: len(found) for path, _, found in read}
    assert (
        counts["small.png"] == 2
    )  # of 0.4 % of the picture; autodistill drops what has less than 1 %
    assert counts["nothing.png"] == 0
    assert counts["blue..1.png"] == 1  # a name that autodistill changes, so that its boxes are lost
    placed = {
        path.name: path.read_bytes()
        for path in output.rglob("*.*")
        if path.suffix in (".png", ".jpg")
    }
    assert placed == {path.name: data for path, data in before.items()}  # no PNG became a JPEG
    told = yaml.safe_load((output / "data.yaml").read_text())
    assert told == {
        "train": "train/images",
        "val": "valid/images",
        "nc": 2,
        "names": {0: "warm", 1: "cold"},
    }
    found = json.loads((output / "dataset.json").read_text())
    assert found["split"]["shares"] == {"train": 0.8, "valid": 0.2}
    shutil.move(output, tmp_path / "moved")
    again = sv.DetectionDataset.from_yolo(
        *(str(tmp_path / "moved" / "train" / name) for name in ("images", "labels")),
        str(tmp_path / "moved" / "data.yaml"),
    )
    assert len(again) == found["parts"]["train"]


def test_labelling_is_seeded_and_goes_on(model, images, tmp_path):
    model.label(images, output_folder=tmp_path / "out")
    located = model._model.located
    photo(images / "late.png", ("blue", (8, 8, 50, 50)), size=(64, 64))
    assert len(model.label(images, output_folder=tmp_path / "out")) == 12
    assert model._model.located == located + 1
    with pytest.raises(OutputError, match="other settings"):
        model.label(images, output_folder=tmp_path / "out", confidence=0.9)
    only = model.label(images, ".png", tmp_path / "png", backgrounds="leave-out", split="all=1")
    assert sorted(Path(path).name for path in only.image_paths) == [
        *(f"blue..{i}.png" for i in range(3)),
        *("late.png", "small.png"),
    ]


def test_a_classifier_names_what_it_is_sure_of(images, tmp_path, monkeypatch):
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    encoder = SmallEncoder()
    detector = SmallDetector()
    model = AnnotaryDetection(
        {"red": "red", "blue": "blue"}, detector, classifier=encoder, classifier_confidence=0.5
    )
    bare = AnnotaryDetection({"red": "red", "blue": "blue"}, detector)
    path = images / "small.png"
    found, plain = model.predict(path), bare.predict(path)
    assert sorted(found.class_id) == sorted(plain.class_id)
    assert set(found.confidence) & set(plain.confidence) == set()
    assert encoder.images == 2
    assert not (tmp_path / "temp.jpeg").exists()
    read = model.label(images)
    assert len(read) == 11
    lines = (tmp_path / "images_labeled" / "labels.jsonl").read_text().splitlines()
    boxes = [box for line in lines for box in json.loads(line)["boxes"]]
    assert len(boxes) == 11
    assert all(box["classified"]["score"] > 0.5 for box in boxes)


def test_another_ontology_is_taken_and_a_wrong_one_is_not(model, images):
    model.set_ontology({"red": "wall"})
    assert model.classes == ["wall"]
    for wrong in (5, {}):
        with pytest.raises(UsageError):
            model.set_ontology(wrong)
    assert model.classes == model.ontology.classes() == ["wall"]
    assert set(model.predict(images / "red-0.jpg").class_id) == {0}


def test_what_is_wrong_is_told(model, images, tmp_path):
    with pytest.raises(UsageError, match="finds no boxes"):
        AnnotaryDetection(ONTOLOGY, SmallEncoder())
    with pytest.raises(UsageError, match=r"confidence must be in 0\.\.1"):
        AnnotaryDetection(ONTOLOGY, SmallDetector(), 1.5)
    with pytest.raises(UsageError, match=r"nms must be in 0\.\.1"):
        AnnotaryDetection(ONTOLOGY, SmallDetector(), nms=3.0)
    with pytest.raises(UsageError, match="confidence must be"):
        model.predict(images / "small.png", confidence="high")
    with pytest.raises(UnreadableImage):
        model.predict(b"nothing")
    with pytest.raises(UsageError, match="split must have shares"):
        model.label(images, output_folder=tmp_path / "o", split="train=0.5")
    assert not (tmp_path / "o").exists()
    with pytest.warns(UserWarning, match="longer than small-detector@1.0 reads"):
        AnnotaryDetection({"a very very very long red": "red"}, SmallDetector())


def test_it_is_asked_as_composed_models_and_slicers_ask(model, images):
    """`ComposedDetectionModel` asks with a path, `sahi_predict` with parts of an array in BGR."""
    path = str(images / "small.png")
    found = model.sahi_predict(path)
    assert sorted(found.class_id) == sorted(model.predict(path).class_id)
    assert COLOURS["red"][0] > COLOURS["red"][2]  # or the two orders of channels would be one
