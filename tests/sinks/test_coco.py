"""COCO files: pycocotools and supervision read them, numbers are unique, and runs go on with the same ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from annotary.errors import OutputError
from annotary.pipeline.output import FileOutput
from annotary.records import Annotation, Box, Caption, Item
from annotary.sinks import SinkOptions, open_sink, read_tags
from annotary.sinks._journaled import journal_of
from tests.sinks.boxes import ALL, BIRD, DOG, SKY, in_one_folder, item_of, several, write

CAPTIONED = (
    Annotation("photos/a.jpg", 6, 4, captions=(Caption("a dog", 0.5, 0.75), Caption("a cat"))),
    Annotation("photos/b.jpg", 6, 4),
    Annotation("photos/2024/c.jpg", 6, 4, captions=(Caption('say "hi",\nyou', 0.25),)),
)


def load(path: Path) -> dict:
    return json.loads(path.read_bytes())


def opened(path: Path):
    return pytest.importorskip("pycocotools.coco").COCO(str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "boxes.json"


def test_pycocotools_reads_it(path, capsys):
    write("coco", path, ALL)
    coco = opened(path)
    capsys.readouterr()
    assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == [
        *("cat", "fish", "dog"),
        'a "bird", <small> & red',
    ]
    by_name = {image["file_name"]: image for image in coco.loadImgs(coco.getImgIds())}
    assert list(by_name) == ["2024/dog.jpg", "sky.jpg", "bird.jpg"]
    for record in ALL:
        image = by_name[record.image.removeprefix("photos/")]
        assert (image["width"], image["height"]) == (60, 40)
        found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        for entry, box in zip(found, record.boxes, strict=True):
            left, top, width, height = entry["bbox"]
            assert (left, top, left + width, top + height) == pytest.approx(box.xyxy)
            assert entry["area"] == pytest.approx(width * height)
            assert entry["iscrowd"] == 0
            assert entry["score"] == box.score
            assert coco.loadCats(entry["category_id"])[0]["name"] == box.label


def test_pycocotools_measures_with_it(path, capsys):
    """As the truth, and its annotations as results: a perfect score."""
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    write("coco", path, ALL[:2])
    truth = opened(path)
    results = truth.loadRes(load(path)["annotations"])
    measured = evaluation.COCOeval(truth, results, "bbox")
    measured.evaluate()
    measured.accumulate()
    measured.summarize()
    capsys.readouterr()
    assert measured.stats[0] == pytest.approx(1.0)


def test_supervision_reads_it(path, tmp_path):
    supervision = pytest.importorskip("supervision")
    for record in ALL:
        (tmp_path / record.image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(tmp_path / record.image)
    write("coco", path, ALL)
    dataset = supervision.DetectionDataset.from_coco(
        images_directory_path=str(tmp_path / "photos"), annotations_path=str(path)
    )
    assert dataset.classes[:3] == ["cat", "fish", "dog"]
    assert len(dataset) == 3
    for record in ALL:
        found = dataset.annotations[str((tmp_path / record.image).resolve())]
        assert [dataset.classes[number] for number in found.class_id] == [
            box.label for box in record.boxes
        ]
        expected = np.array([box.xyxy for box in record.boxes]).reshape(-1, 4)
        np.testing.assert_allclose(found.xyxy, expected, atol=1e-4)


def test_numbers_do_not_begin_anew_for_each_image(path):
    """As in supervision#285, cvat#2155: with them pycocotools keeps one annotation of each number."""
    write("coco", path, ALL[:1])
    write("coco", path, ALL)
    write("coco", path, ALL)
    value = load(path)
    assert [image["id"] for image in value["images"]] == [1, 2, 3]
    assert [entry["id"] for entry in value["annotations"]] == [1, 2, 3, 4]
    assert [entry["image_id"] for entry in value["annotations"]] == [1, 1, 3, 3]


def test_images_without_boxes_are_listed(path):
    """As asked for in label-studio#1470 and label-studio#2597."""
    write("coco", path, [SKY])
    value = load(path)
    assert [image["file_name"] for image in value["images"]] == ["sky.jpg"]
    assert value["annotations"] == []
    assert [entry["name"] for entry in value["categories"]] == ["cat", "fish", "dog"]
    write("coco", path.with_name("none.json"), [])
    assert load(path.with_name("none.json"))["images"] == []


def test_a_run_that_goes_on_numbers_classes_as_before(path):
    once = path.with_name("once.json")
    write("coco", once, ALL)
    write("coco", path, ALL[:1], is_killed=True)
    write("coco", path, ALL[:2], is_killed=True)
    write("coco", path, ALL)
    assert path.read_bytes() == once.read_bytes()
    # What was finished keeps its numbers, also when a run names others.
    more = Annotation("photos/z.jpg", 6, 4, boxes=(Box("owl", 0.5, (0, 0, 1, 1)),))
    write("coco", path, [more], classes=("owl", "cat"))
    listed = [(entry["id"], entry["name"]) for entry in load(path)["categories"]]
    assert listed == [(1, "cat"), (2, "fish"), (3, "dog"), (4, BIRD.boxes[0].label), (5, "owl")]


@in_one_folder
@given(several)
def test_anything_comes_back(tmp_path, found):
    path = tmp_path / "boxes.json"
    path.unlink(missing_ok=True)
    write("coco", path, found[:1], classes=())
    write("coco", path, found[:2], classes=(), is_killed=True)
    write("coco", path, found, classes=())
    value = load(path)
    classes = {entry["id"]: entry["name"] for entry in value["categories"]}
    read = []
    for image in value["images"]:
        boxes = []
        for entry in value["annotations"]:
            if entry["image_id"] == image["id"]:
                left, top, width, height = entry["bbox"]
                edges = (left, top, left + width, top + height)
                boxes.append((classes[entry["category_id"]], entry["score"], edges))
        read.append((image.get("path", image["file_name"]), boxes))
    assert [name for name, _ in read] == [record.image for record in found]
    for (_, boxes), record in zip(read, found, strict=True):
        for (label, score, edges), box in zip(boxes, record.boxes, strict=True):
            assert (label, score) == (box.label, box.score)
            assert edges == pytest.approx(box.xyxy, abs=1e-5)
    tags = list(read_tags("coco", path, SinkOptions()))
    assert [name for name, _ in tags] == [record.image for record in found]
    assert [{name for name, _ in one} for _, one in tags] == [
        {box.label for box in record.boxes} for record in found
    ]


@pytest.mark.parametrize("form", ["coco", "coco-captions", "cvat"])
def test_a_journal_cut_anywhere_is_continued(form, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    path, once = tmp_path / "out", tmp_path / "once"
    records, parts = (CAPTIONED, "captions") if form == "coco-captions" else (ALL, "boxes")
    write(form, once, records, parts=(parts,))
    write(form, path, records, parts=(parts,), is_killed=True)
    journal = journal_of(path)
    whole, unfinished = journal.read_bytes(), path.read_bytes()
    for end in range(0, len(whole), 3):
        journal.write_bytes(whole[:end])
        path.write_bytes(unfinished)
        write(form, path, records, parts=(parts,))
        assert path.read_bytes() == once.read_bytes(), f"cut after {end} bytes"
        assert not journal.exists()


@pytest.mark.parametrize("form", ["coco", "coco-captions", "cvat"])
def test_a_kill_between_the_file_and_its_journal(form, tmp_path):
    """The file has the records of the journal; none of them is there twice then."""
    path = tmp_path / "out"
    records, parts = (CAPTIONED, ("captions",)) if form == "coco-captions" else (ALL, ("boxes",))
    write(form, path, records[:2], parts=parts, is_killed=True)
    journal = journal_of(path).read_bytes()
    write(form, path, records[:2], parts=parts)
    finished = path.read_bytes()
    journal_of(path).write_bytes(journal)
    write(form, path, records[:2], parts=parts)
    assert path.read_bytes() == finished
    assert not journal_of(path).exists()


@pytest.mark.parametrize("form", ["coco", "coco-captions", "cvat"])
def test_a_file_of_someone_else_is_left_alone(form, tmp_path):
    path = tmp_path / "out"
    for content in (b'{"images": []}', b"<annotations/>", b"[]"):
        path.write_bytes(content)
        with pytest.raises(OutputError, match="holds something else; choose another --output"):
            write(form, path, [], parts=("captions",) if form == "coco-captions" else ("boxes",))
        assert path.read_bytes() == content


@pytest.mark.parametrize("form", ["coco", "cvat"])
def test_a_file_that_was_cut_is_told_in_a_line(form, tmp_path):
    path = tmp_path / "out"
    write(form, path, ALL)
    whole = path.read_bytes()
    start = whole.index(b"sky.jpg")
    for end in (start, len(whole) - 3):
        path.write_bytes(whole[:end])
        with pytest.raises(OutputError, match="was changed by something else"):
            write(form, path, ALL)
        assert path.read_bytes() == whole[:end]


@pytest.mark.parametrize("form", ["coco", "cvat"])
def test_what_is_killed_is_counted(form, tmp_path):
    path = tmp_path / "out"
    write(form, path, [DOG])
    write(form, path, [DOG, SKY], is_killed=True)
    read = dict(read_tags(form, path, SinkOptions()))
    assert read == {DOG.image: (("dog", 0.875), ("cat", 0.5)), SKY.image: ()}


def test_images_of_one_place_in_two_folders_are_both_there(path):
    found = [Annotation(name, 6, 4) for name in ("a/x.jpg", "b/x.jpg")]
    for _ in range(2):
        sink = open_sink("coco", path, SinkOptions(), ("boxes",))
        for record in found:
            item = Item(record.image, path=Path(record.image), relative="x.jpg")
            if not sink.holds(item):
                sink.write(item, record)
        sink.close(complete=True)
    images = load(path)["images"]
    assert [image["file_name"] for image in images] == ["x.jpg", "b/x.jpg"]
    assert images[0]["path"] == "a/x.jpg"


def test_addresses_and_names_that_are_not_utf8(path):
    strange = os.fsdecode(b"photos/\xff.jpg")
    found = [Annotation("https://example.com/a.jpg", 6, 4), Annotation(strange, 6, 4)]
    for _ in range(2):
        sink = open_sink("coco", path, SinkOptions(), ("boxes",))
        for record in found:
            is_file = record.image == strange
            item = item_of(record) if is_file else Item(record.image, url=record.image)
            if not sink.holds(item):
                sink.write(item, record)
        sink.close(complete=True)
    first, second = load(path)["images"]
    assert first["coco_url"] == first["file_name"] == "https://example.com/a.jpg"
    assert second["path"] == strange
    assert second["file_name"] == strange.removeprefix("photos/")


def test_captions(tmp_path, capsys):
    path = tmp_path / "captions.json"
    write("coco-captions", path, CAPTIONED[:1], parts=("captions",))
    write("coco-captions", path, CAPTIONED, parts=("captions",))
    coco = opened(path)
    by_name = {image["file_name"]: image["id"] for image in coco.loadImgs(coco.getImgIds())}
    assert list(by_name) == ["a.jpg", "b.jpg", "2024/c.jpg"]
    for record in CAPTIONED:
        found = coco.loadAnns(coco.getAnnIds(by_name[record.image.removeprefix("photos/")]))
        assert [entry["caption"] for entry in found] == [entry.text for entry in record.captions]
    first, second, third = load(path)["annotations"]
    assert first == {"id": 1, "image_id": 1, "caption": "a dog", "score": 0.5, "match": 0.75}
    assert second == {"id": 2, "image_id": 1, "caption": "a cat"}
    assert third["id"] == 3
    assert "categories" not in load(path)
    # What servers that measure captions take.
    results = coco.loadRes([{"image_id": 1, "caption": "a dog"}])
    capsys.readouterr()
    assert [entry["caption"] for entry in results.loadAnns(results.getAnnIds(1))] == ["a dog"]


@pytest.mark.parametrize("form", ["coco", "cvat"])
def test_a_killed_run_is_continued_or_thrown_away(form, tmp_path):
    """Through the pipeline, which knows what a run was made with."""
    path = tmp_path / "out"

    def opened_with(threshold: float, **options: str) -> FileOutput:
        sink_options = SinkOptions(**options)  # type: ignore[arg-type]
        settings = {"threshold": threshold}
        return FileOutput(form, path, sink_options, settings, retry_failed=False, parts=["boxes"])

    first = opened_with(0.5)
    first.write(item_of(DOG), DOG)
    assert first._state is not None
    first._state.release(complete=False)
    with pytest.raises(OutputError, match=r"threshold was 0\.5, now 0\.9"):
        opened_with(0.9)
    second = opened_with(0.5)
    assert second.standing(item_of(DOG)) == "done"
    assert second.standing(item_of(SKY)) == "new"
    second.write(item_of(SKY), SKY)
    second.close(complete=True)
    assert [name for name, _ in read_tags(form, path, SinkOptions())] == [DOG.image, SKY.image]
    third = opened_with(0.9, on_existing="overwrite")
    assert third.standing(item_of(DOG)) == "new"
    third.close(complete=True)
    assert list(read_tags(form, path, SinkOptions())) == []
    assert not journal_of(path).exists()
