"""Datasets of boxes: what is in them, which part an image is in, and what stays as it was."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotary.datasets import formats
from annotary.errors import OutputError, UsageError
from tests.datasets.spots import SpotFinder, composed, make_boxes, photo
from tests.small_encoder import COLOURS, SmallEncoder

FORMATS = ("coco", "voc", "yolo")


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def parts_of(output: Path) -> dict[str, str]:
    return {Path(row["original"]).name: row["part"] for row in rows_of(output)}


def spotted(folder: Path, start: int = 0, size=(64, 48), **counts: int) -> Path:
    """Photos, no two of which are equal; `red_blue=3` makes three with a red and a blue spot."""
    for colours, count in counts.items():
        for i in range(start, start + count):
            spots = [
                (colour, (2 + 22 * number, 3 + i % 9, 12 + 22 * number + i // 9, 15 + i % 9))
                for number, colour in enumerate(colours.split("_"))
                if colour != "nothing"
            ]
            dot = Image.new("RGB", size)
            dot.putpixel((0, 0), (i % 256, i // 256, 0))
            path = photo(folder / f"{colours}-{i:03}.png", *spots, size=size)
            with Image.open(path) as opened:
                opened.load()
            opened.putpixel((0, 0), (100, 100 + i // 256, i % 256))
            opened.save(path)
    return folder


@pytest.fixture
def photos(tmp_path):
    return spotted(tmp_path / "photos", red=10, red_blue=5, green=5, nothing=4)


def test_formats_are_those_of_boxes():
    assert formats("detect") == FORMATS
    assert not set(formats("classify")) & set(FORMATS)
    assert set(formats()) == {*formats("classify"), *FORMATS}


@pytest.mark.parametrize("form", FORMATS)
def test_every_image_is_there_once_and_as_it_was(photos, tmp_path, form):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.iterdir()}
    found = make_boxes(photos, tmp_path / "out", form)
    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in photos.iterdir()}
    assert found["images"] == sum(found["parts"].values()) == 24
    assert found["backgrounds"] == 4
    assert found["task"] == "detect"
    assert {label: sum(given.values()) for label, given in found["counts"].items()} == {
        "red": 15,
        "green": 5,
        "blue": 5,
    }
    assert found["boxes"] == found["counts"]  # no spot is there twice
    placed = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")}
    assert placed == {path.name: data for path, (data, _) in before.items()}
    for row in rows_of(tmp_path / "out"):
        assert (tmp_path / "out" / row["file"]).is_file()
        assert int(row["boxes"]) == (
            2 if "red_blue" in row["file"] else "nothing" not in row["file"]
        )
        assert (row["lowest"] != "") == (int(row["boxes"]) > 0)
    assert found["turned"] == found["empty_boxes"] == 0


def test_every_label_is_in_every_part(photos, tmp_path):
    found = make_boxes(photos, tmp_path / "out", split="train=0.6,val=0.2,test=0.2")
    for label, given in found["counts"].items():
        assert min(given.values()) >= 1, (label, given)
    # What is rarest comes first; red counts where it is alone.
    assert found["split"]["order"] == ["green", "blue", "red"]
    assert found["counts"]["green"] == {"train": 3, "val": 1, "test": 1}
    assert found["counts"]["blue"] == {"train": 3, "val": 1, "test": 1}
    assert found["counts"]["red"] == {"train": 9, "val": 3, "test": 3}
    backgrounds = Counter(row["part"] for row in rows_of(tmp_path / "out") if row["boxes"] == "0")
    assert set(backgrounds) == {"train", "val", "test"}


def test_a_label_with_too_few_images_goes_with_what_else_is_there(tmp_path):
    photos = spotted(tmp_path / "photos", red=20, red_green=2, blue=1)
    found = make_boxes(photos, tmp_path / "out")
    assert found["split"]["order"] == ["red"]
    assert found["split"]["small"] == ["blue", "green"]
    assert sum(found["counts"]["red"].values()) == 22
    assert found["counts"]["red"] == {"train": 18, "val": 2, "test": 2}


@pytest.mark.parametrize("form", FORMATS)
def test_added_images_move_none_and_boxes_of_before_stay(tmp_path, form):
    out, photos = tmp_path / "out", spotted(tmp_path / "photos", red=12, red_blue=6)
    make_boxes(photos, out, form)
    before = parts_of(out)
    corrected = next(iter([*sorted(out.rglob("red*.txt")), *sorted(out.rglob("red*.xml"))]), None)
    if corrected is not None:
        corrected.write_text("by hand")
    # Labels that were not there, and far more of one that was rare.
    spotted(photos, start=20, red_blue=40, green=9, red_green=2, nothing=5)
    finder = SpotFinder(("red", "green", "blue"))
    found = make_boxes(photos, out, form, task=finder)
    assert finder.images == 56
    assert found["labelled"].done_before == 18
    assert found["images"] == 18 + 56
    assert before.items() <= parts_of(out).items()
    assert found["split"]["order"] == ["green", "blue", "red"]
    assert found["counts"]["green"]["val"] >= 1
    assert found["counts"]["green"]["test"] >= 1
    if corrected is not None:
        assert corrected.read_text() == "by hand"
    for row in rows_of(out):
        assert (out / row["file"]).is_file()
    assert len(list(out.rglob("*.png"))) == 74


def test_corrected_annotations_of_coco_are_kept_beside_the_new_ones(tmp_path):
    photos, out = spotted(tmp_path / "photos", red=4), tmp_path / "out"
    make_boxes(photos, out, "coco", split="all=1")
    path = out / "all" / "_annotations.coco.json"
    first = path.read_bytes()
    make_boxes(photos, out, "coco", split="all=1")
    assert path.read_bytes() == first
    assert len(list(out.rglob("*.json"))) == 3  # the dataset, the settings and the annotations
    for number, name in enumerate(("changed", "changed-2"), start=1):
        told = json.loads(path.read_text())
        told["annotations"][0]["category_id"] = 3
        path.write_text(json.dumps(told))
        spotted(photos, start=20 + number, red=1)
        make_boxes(photos, out, "coco", split="all=1")
        assert json.loads((out / "all" / f"_annotations.coco.{name}.json").read_text()) == told
        assert len(json.loads(path.read_text())["images"]) == 4 + number


@pytest.mark.parametrize("form", FORMATS)
def test_images_that_somebody_removed_are_in_no_list(tmp_path, form):
    photos, out = spotted(tmp_path / "photos", red=4), tmp_path / "out"
    make_boxes(photos, out, form, split="all=1")
    (gone,) = out.rglob("red-002.png")
    gone.unlink()
    data_file = out / "data.yaml"
    if form == "yolo":
        data_file.write_text(data_file.read_text() + "download: none\n")
    spotted(photos, start=20, red=1)
    make_boxes(photos, out, form, split="all=1")
    assert not gone.exists()
    assert len(list(out.rglob("*.png"))) == 4
    if form == "coco":
        told = json.loads((out / "all" / "_annotations.coco.json").read_text())
        assert "red-002.png" not in {image["file_name"] for image in told["images"]}
        assert len(told["images"]) == 4
    if form == "voc":
        listed = (out / "ImageSets" / "Main" / "all.txt").read_text().split()
        assert listed == ["red-000", "red-001", "red-003", "red-020"]
    if form == "yolo":
        assert data_file.read_text().endswith("download: none\n")


def test_equal_images_are_in_the_same_part_and_the_seed_tells_which(photos, tmp_path):
    for path in sorted(photos.iterdir()):
        shutil.copyfile(path, photos / f"copy-{path.name}")
    splits = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_boxes(photos, tmp_path / name, seed=seed)
        parts = parts_of(tmp_path / name)
        assert all(parts[name] == parts[f"copy-{name}"] for name in parts if "copy" not in name)
        splits.append(parts)
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize("form", FORMATS)
def test_backgrounds_are_kept_or_left_out(photos, tmp_path, form):
    found = make_boxes(photos, tmp_path / "out", form, backgrounds="leave-out")
    assert found["images"] == 20
    assert found["backgrounds"] == 4
    assert len(list((tmp_path / "out").rglob("*.png"))) == 20
    rows = [row for row in rows_of(tmp_path / "out") if not row["part"]]
    assert sorted(Path(row["original"]).name for row in rows) == [
        f"nothing-{i:03}.png" for i in range(4)
    ]
    assert all(row["file"] == "" and row["boxes"] == "0" for row in rows)
    again = make_boxes(photos, tmp_path / "out", form, backgrounds="leave-out")
    assert (again["images"], again["backgrounds"]) == (20, 4)


@pytest.mark.parametrize("form", FORMATS)
def test_labels_that_are_never_found_and_no_images_at_all(tmp_path, form):
    photos = spotted(tmp_path / "photos", nothing=1)
    found = make_boxes(photos, tmp_path / "one", form)
    assert (found["images"], found["backgrounds"]) == (1, 1)
    assert found["parts"] == {"train": 1, "val": 0, "test": 0}
    assert found["split"]["order"] == []
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "broken.png").write_bytes(b"")
    found = make_boxes(empty, tmp_path / "none", form)
    assert found["images"] == 0
    assert found["labelled"].failed == 1
    photo(empty / "whole.png", ("red", (3, 3, 20, 20)))
    found = make_boxes(empty, tmp_path / "none", form)
    assert found["images"] == 1
    assert found["counts"]["red"] == {"train": 1, "val": 0, "test": 0}


def test_other_thresholds_need_no_network(photos, tmp_path):
    photo(photos / "small.png", ("red", (5, 5, 9, 9)), ("blue", (20, 5, 50, 40)))
    finder = SpotFinder(("red", "green", "blue"))
    make_boxes(photos, tmp_path / "one", threshold=0.2, task=finder)
    assert finder.images == 25
    line = json.loads((tmp_path / "one" / "labels.jsonl").read_text().splitlines()[-1])
    assert [box["label"] for box in line["boxes"]] == ["blue", "red"]
    assert line["boxes"][1] == {"label": "red", "score": 1 / 12, "xyxy": [5, 5, 9, 9]}
    for form, threshold in (("coco", 0.08), ("voc", 0.2), ("yolo", 0.5)):
        told = {"threshold": threshold, "task": finder, "labels_of": tmp_path / "one"}
        found = make_boxes(photos, tmp_path / form, form, **told)
        assert finder.images == 25
        assert found["labelled"].done_before == 25
        fresh = make_boxes(photos, tmp_path / f"{form}-fresh", form, threshold=threshold)
        assert fresh["boxes"] == found["boxes"]
        assert parts_of(tmp_path / form) == parts_of(tmp_path / f"{form}-fresh")
    assert sum(found["boxes"]["blue"].values()) == 1
    found = make_boxes(
        *(photos, tmp_path / "red"), thresholds={"red": 0.9}, labels_of=tmp_path / "one"
    )
    assert sum(found["boxes"]["red"].values()) == 0
    assert found["thresholds"]["red"] == 0.9


def test_boxes_that_were_never_written_down_are_not_taken_for_all(photos, tmp_path):
    make_boxes(photos, tmp_path / "one", threshold=0.3)
    with pytest.raises(UsageError, match="made with higher thresholds, so that boxes below them"):
        make_boxes(photos, tmp_path / "two", threshold=0.01, labels_of=tmp_path / "one")
    make_boxes(
        photos, tmp_path / "low", threshold=0.01, task=SpotFinder(("red", "green", "blue"), 0.01)
    )
    found = make_boxes(photos, tmp_path / "three", threshold=0.3, labels_of=tmp_path / "low")
    assert found["labelled"].done_before == 24
    with pytest.raises(UsageError, match="made with other labels or prompts"):
        make_boxes(photos, tmp_path / "four", labels=("red",), labels_of=tmp_path / "one")


def test_datasets_of_labels_and_of_boxes_are_not_taken_for_each_other(photos, tmp_path):
    from tests.datasets.conftest import make_dataset

    make_boxes(photos, tmp_path / "boxes")
    make_dataset(photos, tmp_path / "labels")
    with pytest.raises(UsageError, match="another --task"):
        make_dataset(photos, tmp_path / "a", labels_of=tmp_path / "boxes")
    with pytest.raises(UsageError, match="another --task"):
        make_boxes(photos, tmp_path / "b", labels_of=tmp_path / "labels")
    with pytest.raises(OutputError, match="other settings"):
        make_boxes(photos, tmp_path / "labels")
    with pytest.raises(UsageError, match="--format folders holds a label for each image, and"):
        make_boxes(photos, tmp_path / "c", "folders")
    with pytest.raises(UsageError, match="--unsure is for --task classify"):
        make_boxes(photos, tmp_path / "c", unsure="leave-out")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_names_are_kept_apart_where_they_would_share_a_file_of_boxes(tmp_path, form):
    photos = tmp_path / "photos"
    photo(photos / "a.png", ("red", (3, 3, 20, 20)))
    photo(photos / "a.jpg", ("blue", (8, 8, 32, 24)), quality=98, subsampling=0)
    photo(photos / "deep" / "a.png", ("green", (3, 3, 40, 20)))
    photo(photos / "b c..#.png", ("green", (3, 3, 41, 20)))
    found = make_boxes(photos, tmp_path / "out", form, split="all=1")
    assert found["images"] == 4
    assert {label: given["all"] for label, given in found["boxes"].items()} == {
        "red": 1,
        "green": 2,
        "blue": 1,
    }
    names = [Path(row["file"]).name for row in rows_of(tmp_path / "out")]
    stems = {Path(name).stem.casefold() for name in names}
    assert len(stems) == (3 if form == "coco" else 4)
    if form == "coco":
        assert {"a.png", "a.jpg", "b c..#.png"} <= set(names)
    if form == "yolo":
        assert any(name.startswith("b c..#") for name in names)
    if form == "voc":
        assert not any(" " in name or "#" in name for name in names)
        assert (tmp_path / "out" / "ImageSets" / "Main" / "all.txt").read_text().split() == [
            Path(name).stem for name in names
        ]


TURNS = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
    5: Image.Transpose.TRANSPOSE,
}
"""EXIF orientation to what makes the stored picture of the upright one."""


def turned(path: Path, orientation: int, *spots, **options) -> Path:
    """A photo with spots that is stored as a camera held otherwise stores it."""
    photo(path.with_suffix(".bmp"), *spots)
    with Image.open(path.with_suffix(".bmp")) as opened:
        stored = opened.transpose(TURNS[orientation])
    path.with_suffix(".bmp").unlink()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("placing", ["copy", "hardlink", "symlink"])
def test_images_that_exif_turns_are_stored_upright(tmp_path, form, placing):
    photos, out = tmp_path / "photos", tmp_path / "out"
    spot = ("red", (8, 8, 32, 24))
    straight = photo(photos / "straight.jpg", spot, quality=98, subsampling=0)
    for orientation in TURNS:
        turned(photos / f"t{orientation}.jpg", orientation, spot, quality=98, subsampling=0)
    turned(photos / "t6.png", 6, spot)
    turned(photos / "w8.webp", 8, spot, lossless=True)
    before = {path: path.read_bytes() for path in photos.iterdir()}
    found = make_boxes(photos, out, form, split="all=1", placing=placing)
    assert found["turned"] == 6
    assert sum(found["boxes"]["red"].values()) == found["images"] == 7
    assert before == {path: path.read_bytes() for path in photos.iterdir()}
    for row in rows_of(out):
        file, original = out / row["file"], photos / Path(row["original"]).name
        if original == straight:
            assert file.read_bytes() == before[original]
            assert row["turned"] == ""
            assert file.is_symlink() == (placing == "symlink")
            continue
        assert row["turned"] == "yes"
        assert not file.is_symlink()
        assert file.suffix == (".jpg" if original.suffix == ".jpg" else ".png")
        with Image.open(file) as opened:  # no EXIF is read here
            assert opened.size == (64, 48)
            assert opened.getexif().get(0x0112, 1) == 1
            pixels = np.asarray(opened.convert("RGB")).astype(int)
        left, top, right, bottom = spot[1]
        inside = pixels[top + 2 : bottom - 2, left + 2 : right - 2]
        assert np.abs(inside - COLOURS["red"]).max() < 20
        assert np.abs(pixels[bottom + 4 :, right + 4 :] - 128).max() < 20
    times = {path: path.stat().st_mtime_ns for path in out.rglob("t*.*") if path.is_file()}
    make_boxes(photos, out, form, split="all=1", placing=placing)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_how_an_image_is_turned_is_taken_over_with_its_boxes(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    turned(photos / "t.jpg", 6, ("blue", (8, 8, 32, 24)), quality=98, subsampling=0)
    finder = SpotFinder(("red", "green", "blue"))
    make_boxes(photos, tmp_path / "one", "coco", task=finder, split="all=1")
    told = {"task": finder, "labels_of": tmp_path / "one", "split": "all=1"}
    found = make_boxes(photos, tmp_path / "two", "yolo", **told)
    assert (finder.images, found["turned"]) == (1, 1)
    with Image.open(tmp_path / "two" / "all" / "images" / "t.jpg") as opened:
        assert opened.size == (64, 48)


def test_images_of_archives_are_turned_too(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    turned(photos / "t.jpg", 6, ("blue", (8, 8, 32, 24)), quality=98)
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(photos / "t.jpg", "deep/t.jpg")
    found = make_boxes(tmp_path / "shard.tar", tmp_path / "out", split="all=1")
    assert found["turned"] == 1
    with Image.open(tmp_path / "out" / "all" / "images" / "t.jpg") as opened:
        assert opened.size == (64, 48)


@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_a_file_that_somebody_put_there_is_not_replaced(tmp_path, form):
    photos = spotted(tmp_path / "photos", red=3)
    make_boxes(photos, tmp_path / "out", form, split="all=1")
    folder = tmp_path / "out" / ("Annotations" if form == "voc" else "all/labels")
    own = folder / ("red-020.xml" if form == "voc" else "red-020.txt")
    own.write_text("mine")
    spotted(photos, start=20, red=1)
    found = make_boxes(photos, tmp_path / "out", form, split="all=1")
    assert (found["images"], found["built"].failed) == (3, 1)
    assert own.read_text() == "mine"
    told = json.loads((tmp_path / "out" / "failures.jsonl").read_text())
    assert "another file is where its boxes belong" in told["message"]
    own.unlink()
    found = make_boxes(photos, tmp_path / "out", form, split="all=1", retry_failed=True)
    assert found["images"] == 4


def test_an_original_that_is_gone_leaves_no_boxes_without_an_image(tmp_path, monkeypatch):
    from annotary.datasets import Building

    photos = spotted(tmp_path / "photos", red=4)
    start = Building.__iter__

    def meddle(self):
        (photos / "red-001.png").unlink()
        return start(self)

    with monkeypatch.context() as patched:
        patched.setattr(Building, "__iter__", meddle)
        found = make_boxes(photos, tmp_path / "out", split="all=1")
    assert (found["images"], found["built"].failed) == (3, 1)
    assert len(list((tmp_path / "out").rglob("*.txt"))) == 3


def test_small_boxes_are_kept_and_empty_ones_counted(tmp_path):
    photos = tmp_path / "photos"
    photo(photos / "a.png", ("red", (5, 5, 6, 6)), ("blue", (10, 10, 40, 40)), size=(400, 300))

    class Sloppy(SpotFinder):
        def annotate(self, pictures, *batches):
            from annotary.records import Box

            (found,) = super().annotate(pictures, *batches)
            out = Box("green", 0.9, (-30.0, -3.0, -2.0, 9.0))
            over = Box("green", 0.8, (390.123, 290.0, 460.0, 310.0))
            return [{"boxes": (out, over, *found["boxes"])}]

    task = Sloppy(("red", "green", "blue"), 0.001)
    found = make_boxes(photos, tmp_path / "out", "coco", threshold=0.001, task=task, split="all=1")
    assert found["empty_boxes"] == 1
    told = json.loads((tmp_path / "out" / "all" / "_annotations.coco.json").read_text())
    boxes = [box["bbox"] for box in told["annotations"]]
    assert [390.12, 290.0, 9.88, 10.0] in boxes
    assert [5.0, 5.0, 1.0, 1.0] in boxes


def test_what_two_models_say_is_kept_and_the_surer_counts(tmp_path):
    """The finder takes blue for red; the classifier, which sees the crop, does not."""
    photos = spotted(tmp_path / "photos", red=6, blue=6, size=(96, 72))
    labels = ("red", "green", "blue")
    finder = SpotFinder(("red", "green"), mistakes={"green": "blue"})
    encoder = SmallEncoder()
    options = {"labels": labels, "split": "all=1"}
    found = make_boxes(
        *(photos, tmp_path / "out"),
        task=composed(finder, labels, encoder, compose_margin=0.0),
        **options,
    )
    assert {label: given["all"] for label, given in found["boxes"].items()} == {
        "red": 6,
        "green": 0,
        "blue": 6,
    }
    assert found["model"] == "spots@1.0+small@1.0"
    assert found["compose_threshold"] == 0.5
    assert encoder.images == 12
    for line in (tmp_path / "out" / "labels.jsonl").read_text().splitlines():
        value = json.loads(line)
        (box,) = value["boxes"]
        blue = "blue" in value["image"]
        assert box["label"] == ("green" if blue else "red")
        assert box["classified"]["name"] == ("blue" if blue else "red")
        assert box["classified"]["score"] > 0.5
    # How sure the classifier must be is tried without either network.
    with pytest.raises(OutputError, match=r"compose_threshold was 0\.5, now 1\.0"):
        make_boxes(
            *(photos, tmp_path / "out"),
            task=composed(finder, labels, encoder, compose_margin=0.0),
            compose_threshold=1.0,
            **options,
        )
    other = make_boxes(
        *(photos, tmp_path / "other"),
        task=composed(finder, labels, encoder, compose_margin=0.0),
        compose_threshold=1.0,
        labels_of=tmp_path / "out",
        **options,
    )
    assert (finder.images, encoder.images) == (12, 12)
    assert other["boxes"]["green"] == {"all": 6}
    with pytest.raises(UsageError, match="another --compose, or classifier of it"):
        make_boxes(photos, tmp_path / "bare", task=finder, labels_of=tmp_path / "out", **options)


def test_a_classifier_makes_no_box_of_what_the_detector_does_not_believe(tmp_path):
    photos = tmp_path / "photos"
    photo(photos / "a.png", ("red", (5, 5, 9, 9)), size=(80, 60))
    task = composed(SpotFinder(("red", "blue")), ("red", "blue"), compose_margin=0.0)
    found = make_boxes(
        *(photos, tmp_path / "out"), labels=("red", "blue"), task=task, threshold=0.3
    )
    assert found["backgrounds"] == 1
    (line,) = (tmp_path / "out" / "labels.jsonl").read_text().splitlines()
    assert json.loads(line)["boxes"][0]["classified"]["score"] > 0.9
