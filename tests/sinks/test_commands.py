"""The formats as commands write them: what a run finds is what there are columns and folders for."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from annotary.cli import annotary
from annotary.cli._annotating import Loaded
from annotary.errors import AnnotaryError
from tests.sinks.boxes import ALL as BOXED
from tests.sinks.boxes import write as write_boxes
from tests.small_encoder import COLOURS, SmallEncoder

POLICY = """\
rules:
  - label: red
    review: 0.2
    block: 0.6
"""


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    encoder = SmallEncoder()
    for command in ("classify", "embed"):
        place = f"annotary.cli.{command}.loaded"
        monkeypatch.setattr(place, lambda name, options: Loaded(encoder, "files", "files"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("red", "green", "blue"):
        Image.new("RGB", (60, 40), COLOURS[name]).save(folder / f"{name}.png")
    return Path("photos")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(annotary, [*map(str, arguments), "--quiet"])


def classify(photos: Path, *arguments: object) -> None:
    result = call("classify", photos, "--labels", "red, green, blue", *arguments)
    assert result.exit_code == 0, result.output


def told(*arguments: object) -> str:
    result = call(*arguments)
    assert isinstance(result.exception, AnnotaryError), result.output
    return str(result.exception)


def test_an_embedding_for_each_row(photos):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    Image.new("RGB", (60, 40), COLOURS["red"]).save(photos / "red2.png")
    assert call("embed", photos, "--output", "vectors.npy").exit_code == 0
    Image.new("RGB", (60, 40), COLOURS["white"]).save(photos / "white.png")
    assert call("embed", photos, "--output", "vectors.npy").exit_code == 0
    vectors = np.load("vectors.npy", mmap_mode="r")
    images = pandas.read_parquet("vectors.parquet")["image"].map(lambda image: Path(image).stem)
    assert images.tolist() == ["blue", "green", "red", "red2", "white"]
    assert vectors.shape == (5, 24)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    near = vectors @ vectors[2]
    assert [images[place] for place in np.argsort(-near)[:2]] in (["red", "red2"], ["red2", "red"])
    assert "cannot hold embeddings; use json, json-files, jsonl, npy, parquet, webdataset" in told(
        "embed", photos, "--format", "txt"
    )
    assert not list(photos.glob("*.txt"))


def test_labels_in_folders(photos):
    for _ in range(2):
        classify(photos, "--format", "folders", "--output", "sorted")
    found = {path.as_posix() for path in Path("sorted").rglob("*.png")}
    assert found == {f"sorted/{name}/{name}.png" for name in ("red", "green", "blue")}
    lines = Path("sorted/labels.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[0])["labels"][0]["name"] == "blue"
    assert "lies in photos, which is read" in told(
        *("classify", photos, "--labels", "a, b", "--format", "folders", "--output", "photos/out")
    )
    classify(photos, "--format", "folders", "--output", "linked", "--placing", "symlink")
    assert Path("linked/red/red.png").samefile("photos/red.png")


def test_labels_and_decisions_in_a_table(photos):
    Path("policy.yaml").write_text(POLICY)
    policy = ("--policy", "policy.yaml")
    classify(photos, "--output", "labels.csv", "--top", 1)
    classify(photos, "--output", "decided.csv", "--top", 1, *policy)
    with open("decided.csv", newline="") as file:
        rows = {Path(row["image"]).stem: row for row in csv.DictReader(file)}
    assert rows["red"]["labels"] == "red"
    assert rows["red"]["decision"] == "block"
    assert rows["red"]["reasons"].startswith("red ")
    assert rows["blue"]["decision"] == "allow"
    with open("labels.csv", newline="") as file:
        assert next(csv.reader(file)) == ["image", "width", "height", "labels", "scores"]
    assert "parts was ['labels'], now ['labels', 'decision']" in told(
        *("classify", photos, "--labels", "red, green, blue", "--output", "labels.csv"),
        *("--top", 1, *policy),
    )
    assert "--format txt cannot hold decisions; use csv, " in told(
        *("classify", photos, "--labels", "red, green, blue", "--format", "txt"), *policy
    )
    counted = CliRunner().invoke(annotary, ["tags", "stats", "labels.csv", "--json"])
    assert json.loads(counted.output)["different_tags"] == 3


def test_a_label_beside_each_image(photos):
    classify(photos, "--format", "txt")
    classify(photos, "--format", "xmp")
    assert {path.read_text() for path in photos.glob("*.txt")} == {"red\n", "green\n", "blue\n"}
    assert "<rdf:li>red</rdf:li>" in (photos / "red.xmp").read_text()


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_classes_of_a_folder_of_boxes_are_counted(form, tmp_path):
    write_boxes(form, tmp_path / "found", BOXED)
    counted = CliRunner().invoke(annotary, ["tags", "stats", str(tmp_path / "found"), "--json"])
    told = json.loads(counted.output)
    assert (told["images"], told["without_tags"], told["given_tags"]) == (3, 1, 4)
    assert (told["tags"][0]["name"], told["tags"][0]["images"]) == ("dog", 2)
