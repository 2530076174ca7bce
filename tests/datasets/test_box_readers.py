"""Datasets of boxes, read as trainers read them: none of these readers is ours."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from annotary.datasets import Row, coco, voc, yolo
from annotary.records import Box
from tests.datasets.spots import make_boxes, photo

ULTRALYTICS_SUFFIXES = frozenset(("bmp", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp"))

LABELS = ("red", "green", 'dark: "blue" 🐟 é#')
NAMES = {"red": LABELS[0], "green": LABELS[1], "blue": LABELS[2]}

SPOTS = {
    "a.png": (("red", (4, 6, 30, 20)), ("blue", (40, 10, 60, 40))),
    "b.png": (("blue", (0, 0, 17, 48)),),
    "c d.png": (("green", (10, 10, 51, 47)), ("green", (20, 1, 40, 8))),
    "nothing.png": (),
    "only.one.png": (("red", (1, 1, 63, 47)),),
}


@pytest.fixture(params=["copied", "moved"])
def dataset(request, tmp_path):
    """Makes a dataset, and moves it where nobody knows of it if need be."""

    def make(form: str, **options) -> Path:
        for name, spots in SPOTS.items():
            photo(tmp_path / "photos" / name, *spots, size=(64, 48))
        from tests.datasets.spots import SpotFinder

        class Named(SpotFinder):
            def annotate(self, pictures, *batches):
                return [
                    {"boxes": tuple(Box(NAMES[b.label], b.score, b.xyxy) for b in found["boxes"])}
                    for found in super().annotate(pictures, *batches)
                ]

        task = Named(("red", "green", "blue"))
        split = {"split": "train=0.6,val=0.2,test=0.2", **options}
        make_boxes(tmp_path / "photos", tmp_path / "out", form, labels=LABELS, task=task, **split)
        if request.param == "copied":
            return tmp_path / "out"
        (tmp_path / "else where").mkdir()
        shutil.move(tmp_path / "out", tmp_path / "else where" / "set")
        shutil.rmtree(tmp_path / "photos")
        return tmp_path / "else where" / "set"

    return make


def wanted(name: str) -> list[tuple[str, list[float]]]:
    """The boxes of a photo, by its name as it is or as it had to be changed."""
    spots = SPOTS.get(name) or SPOTS.get(name.replace("_", " ")) or ()
    return sorted((NAMES[colour], [float(edge) for edge in box]) for colour, box in spots)


def check_all(found: dict[str, list[tuple[str, list[float]]]], tolerance: float = 0.01) -> None:
    assert len(found) == len(SPOTS)
    for name, boxes in found.items():
        expected = wanted(name)
        assert [label for label, _ in sorted(boxes)] == [label for label, _ in expected]
        for (_, box), (_, told) in zip(sorted(boxes), expected, strict=True):
            assert np.abs(np.subtract(box, told)).max() <= tolerance, name


def read_as_ultralytics(data_file: Path) -> dict[str, dict[str, list[tuple[str, list[float]]]]]:
    """Parts with images and boxes by the rules of `ultralytics.data.utils` and `YOLODataset`.

    The folder is that of the file where `path` is not said; images are all files below a part with a known suffix;
    labels are found by `/images/` becoming `/labels/` where it stands last, and the suffix `.txt`; a file that is
    empty or missing means background; lines are five numbers, none negative, none of the last four above 1, and no
    class at or above their count.
    """
    told = yaml.safe_load(data_file.read_text(encoding="utf-8"))
    root = Path(told.get("path") or data_file.parent)
    assert "train" in told
    assert "val" in told
    names = told["names"]
    assert set(names) == set(range(told["nc"]))
    found = {}
    for part in ("train", "val", "test"):
        if part not in told:
            continue
        folder = (root / told[part]).resolve()
        assert folder.is_dir()
        found[part] = {}
        for path in sorted(folder.rglob("*.*")):
            if path.suffix[1:].lower() not in ULTRALYTICS_SUFFIXES:
                continue
            before, _, after = str(path).rpartition("/images/")
            label_file = Path(f"{before}/labels/{after}".rsplit(".", 1)[0] + ".txt")
            assert (
                label_file.is_file()
            )  # missing ones would be taken for background, with a warning
            with Image.open(path) as opened:
                width, height = opened.size
            boxes = []
            for line in label_file.read_text().splitlines():
                number, x, y, w, h = (float(value) for value in line.split())
                assert 0 <= number < told["nc"]
                assert min(w, h) > 0
                assert max(x, y, w, h) <= 1
                x, w, y, h = x * width, w * width, y * height, h * height
                boxes.append((names[int(number)], [x - w / 2, y - h / 2, x + w / 2, y + h / 2]))
            assert len(set(map(str, boxes))) == len(boxes)
            found[part][path.name] = boxes
    return found


def test_yolo_as_ultralytics_reads_it(dataset):
    found = read_as_ultralytics(dataset("yolo") / "data.yaml")
    assert list(found) == ["train", "val", "test"]
    every = {name: boxes for part in found.values() for name, boxes in part.items()}
    assert sum(map(len, found.values())) == len(every)
    check_all(every)


@pytest.mark.parametrize(
    ("split", "keys"),
    [
        ("train=0.5,valid=0.5", {"train": "train", "val": "valid"}),
        ("train=0.5,test=0.5", {"train": "train", "val": "test", "test": "test"}),
        ("fold1=0.5,fold2=0.5", {"train": "fold1", "val": "fold2"}),
        ("all=1", {"train": "all", "val": "all"}),
        ("a=0.4,b=0.3,c=0.3", {"train": "a", "val": "c", "b": "b"}),
    ],
)
def test_parts_of_any_name_are_found(split, keys):
    parts = [piece.partition("=")[0] for piece in split.split(",")]
    told = yaml.safe_load(yolo.data_yaml(("a", "b"), parts))
    assert told == {
        **{key: f"{part}/images" for key, part in keys.items()},
        "nc": 2,
        "names": {0: "a", 1: "b"},
    }


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, unique=True))
def test_any_label_is_a_name_of_yaml(labels):
    told = yaml.safe_load(yolo.data_yaml(labels, ("train",)))
    assert list(told["names"].values()) == labels


def test_supervision_reads_yolo(dataset):
    supervision = pytest.importorskip("supervision")
    pytest.importorskip("cv2")
    folder, found = dataset("yolo"), {}
    for part in ("train", "val", "test"):
        read = supervision.DetectionDataset.from_yolo(
            images_directory_path=str(folder / part / "images"),
            annotations_directory_path=str(folder / part / "labels"),
            data_yaml_path=str(folder / "data.yaml"),
        )
        assert read.classes == list(LABELS)
        found |= boxes_of(read)
    check_all(found, 1.0)  # it gives whole pixels


def test_supervision_reads_coco(dataset):
    supervision = pytest.importorskip("supervision")
    pytest.importorskip("cv2")
    folder, found = dataset("coco"), {}
    for part in ("train", "val", "test"):
        read = supervision.DetectionDataset.from_coco(
            images_directory_path=str(folder / part),
            annotations_path=str(folder / part / "_annotations.coco.json"),
        )
        assert read.classes == list(LABELS)
        found |= boxes_of(read)
    check_all(found)


def test_supervision_reads_voc(dataset):
    supervision = pytest.importorskip("supervision")
    pytest.importorskip("cv2")
    folder = dataset("voc")
    read = supervision.DetectionDataset.from_pascal_voc(
        images_directory_path=str(folder / "JPEGImages"),
        annotations_directory_path=str(folder / "Annotations"),
    )
    assert set(read.classes) == set(LABELS)
    check_all(boxes_of(read))


def boxes_of(read) -> dict[str, list[tuple[str, list[float]]]]:
    """What supervision has read, with the pictures themselves."""
    found = {}
    for path, image, detections in read:
        assert image.shape == (48, 64, 3)
        found[Path(path).name] = [
            (read.classes[number], box.tolist())
            for number, box in zip(detections.class_id, detections.xyxy, strict=True)
        ]
    return found


def test_pycocotools_reads_coco_and_numbers_are_there_once(dataset):
    pycocotools = pytest.importorskip("pycocotools.coco")
    folder, found = dataset("coco"), {}
    images, boxes = [], []
    for part in ("train", "val", "test"):
        with redirect_stdout(io.StringIO()):
            read = pycocotools.COCO(str(folder / part / "_annotations.coco.json"))
        assert read.getCatIds() == [1, 2, 3]
        assert [c["name"] for c in read.loadCats(read.getCatIds())] == list(LABELS)
        for number in read.getImgIds():
            (image,) = read.loadImgs(number)
            with Image.open(folder / part / image["file_name"]) as opened:
                assert opened.size == (image["width"], image["height"])
            own = read.loadAnns(read.getAnnIds(imgIds=number))
            found[image["file_name"]] = [
                (read.cats[box["category_id"]]["name"], [*box["bbox"][:2], *_ends(box["bbox"])])
                for box in own
            ]
            images.append(number)
            boxes += [box["id"] for box in own]
            for box in own:
                assert box["area"] == box["bbox"][2] * box["bbox"][3]
                assert 0.0 < box["score"] <= 1.0
    assert len(set(images)) == len(images) == 5
    assert len(set(boxes)) == len(boxes) == 6
    check_all(found)


def _ends(bbox: list[float]) -> tuple[float, float]:
    left, top, width, height = bbox
    return left + width, top + height


def test_voc_as_the_devkit_and_torchvision_read_it(dataset):
    folder, found = dataset("voc"), {}
    for part in ("train", "val", "test"):
        listed = folder / "ImageSets" / "Main" / f"{part}.txt"
        # detectron2 reads it so; torchvision takes each line without what is around it
        names = np.loadtxt(listed, dtype=str, ndmin=1).tolist() if listed.stat().st_size else []
        assert names == [line.strip() for line in listed.read_text().splitlines()]
        for name in names:
            root = ElementTree.parse(folder / "Annotations" / f"{name}.xml").getroot()
            assert (folder / "JPEGImages" / root.findtext("filename")).is_file()
            assert Path(root.findtext("filename")).stem == name
            assert int(root.findtext("size/width")) == 64
            found[root.findtext("filename")] = [
                (
                    each.findtext("name"),
                    [
                        int(each.findtext(f"bndbox/{edge}")) - (edge in ("xmin", "ymin"))
                        for edge in ("xmin", "ymin", "xmax", "ymax")
                    ],
                )
                for each in root.iter("object")
            ]
    check_all(found)


edges = st.tuples(st.floats(0, 500), st.floats(0, 400), st.floats(0.01, 500), st.floats(0.01, 400))


@settings(deadline=None)
@given(st.lists(edges, max_size=5), st.text(min_size=1).filter(str.strip))
def test_any_boxes_come_back_from_files_of_single_images(told, label):
    width, height = 500, 400
    boxes = []
    for left, top, across, down in told:
        right, bottom = min(width, left + across), min(height, top + down)
        box = tuple(round(edge, 2) for edge in (left, top, right, bottom))
        if box[0] < box[2] and box[1] < box[3]:
            boxes.append(Box(label, 0.5, box))
    row = Row("p/images/a.jpg", "", 0.0, "p", "a.jpg", width, height, "00", boxes=tuple(boxes))
    name, content = yolo.beside(row, (label,))
    assert name == "p/labels/a.txt"
    lines = content.decode().splitlines()
    for box, line in zip(boxes, lines, strict=True):
        number, x, y, w, h = map(float, line.split())
        assert number == 0
        shares = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        found = shares * [width, height, width, height]
        assert np.abs(found - box.xyxy).max() < 1e-3
        assert min(w, h) > 0
    row = Row("JPEGImages/a.jpg", "", 0.0, "p", "a.jpg", width, height, "00", boxes=tuple(boxes))
    name, content = voc.beside(row, (label,))
    assert name == "Annotations/a.xml"
    root = ElementTree.fromstring(content)
    for box, each in zip(boxes, root.iter("object"), strict=True):
        values = [int(value.text) for value in each.find("bndbox")]
        assert 1 <= values[0] <= values[2] <= width
        assert 1 <= values[1] <= values[3] <= height
        assert (
            np.abs(np.subtract(values, [1, 1, 0, 0]) - box.xyxy).max() <= 1.5
        )  # of boxes below a pixel


def test_coco_of_more_boxes_than_fit_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "_IN_MEMORY", 100)
    boxes = tuple(Box("a", 0.5, (0.0, 0.0, 5.0, 1.0 + i)) for i in range(50))
    with coco.open(tmp_path, ("a",), ("train", "val")) as tables:
        for i in range(3):
            tables.add(Row(f"train/{i}.jpg", "", 0.0, "train", "", 64, 64, "00", boxes=boxes))
    told = json.loads((tmp_path / "train" / "_annotations.coco.json").read_text())
    assert [box["image_id"] for box in told["annotations"]] == [1] * 50 + [2] * 50 + [3] * 50
    told = json.loads((tmp_path / "val" / "_annotations.coco.json").read_text())
    assert told["images"] == told["annotations"] == []
    assert [category["name"] for category in told["categories"]] == ["a"]


def test_nothing_is_replaced_where_something_went_wrong(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "_annotations.coco.json").write_text("before")

    def break_off() -> None:
        with coco.open(tmp_path, ("a",), ("train",)) as tables:
            tables.add(Row("train/a.jpg", "", 0.0, "train", "", 64, 64, "00"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert (tmp_path / "train" / "_annotations.coco.json").read_text() == "before"
    assert len(list((tmp_path / "train").iterdir())) == 1
