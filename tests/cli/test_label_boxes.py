"""`annotary label --task detect` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from annotary.cli import annotary
from annotary.cli._annotating import Loaded
from annotary.errors import AnnotaryError
from tests.conftest import child_environment
from tests.datasets.spots import photo
from tests.small_detector import SmallDetector
from tests.small_encoder import SmallEncoder

ROOT = Path(__file__).parent.parent.parent

CHILD = """
import sys
from annotary.cli import label, main
from annotary.cli._annotating import Loaded
from tests.small_detector import SmallDetector

label.loaded = lambda name, options: Loaded(SmallDetector(batch_size=1), "files", "files")
main(sys.argv[1:])
"""


@pytest.fixture
def models(monkeypatch, tmp_path):
    """The models by their names."""
    found = {"small": SmallDetector(), "starter": SmallEncoder()}
    monkeypatch.setattr(
        "annotary.cli.label.loaded",
        lambda name, options: Loaded(found[name], f"files of {name}", f"files of {name}"),
    )
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))
    return found


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for i in range(10):
        photo(folder / f"red-{i}.png", ("red", (4, 4, 16 + i, 20)), size=(64, 64))
    for i in range(5):
        spots = (("red", (4, 4, 16, 20)), ("blue", (30, 30, 60 - i, 60)))
        photo(folder / f"both-{i}.png", *spots, size=(64, 64))
    photo(folder / "nothing.png", size=(64, 64))
    return folder


def call(*arguments, task="detect", model="small"):
    told = ("--task", task, *(("--model", model) if model else ()))
    return CliRunner().invoke(annotary, ["label", *map(str, arguments), *told])


def complaint(*arguments, **options):
    result = call(*arguments, **options)
    assert isinstance(result.exception, AnnotaryError), result.output
    assert result.stdout == ""
    text = str(result.exception)
    assert "\n" not in text
    return text


def test_a_dataset_is_made_and_counted(models, photos):
    result = call(photos, "--labels", "red,blue,green", "--output", "out", "--threshold", "0.5")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "      train  val  test  all  boxes",
        "red      11    2     2   15     15",
        "blue      3    1     1    5      5",
        "all      12    2     2   16     20",
        "1 without a box, kept as background",
    ]
    told = result.stderr.splitlines()
    assert told[0].startswith("16 labelled in ")
    assert told[1:] == ["labels without an image: green"]
    assert Path("out/data.yaml").read_text().splitlines()[0] == "train: train/images"
    assert len(list(Path("out").rglob("*.txt"))) == len(list(Path("out").rglob("*.png"))) == 16
    assert models["small"].located == 16


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_it_goes_on(models, photos, form):
    arguments = (photos, "--labels", "red,blue", "--output", "out", "--format", form)
    first = call(*arguments)
    photo(photos / "more.png", ("red", (8, 8, 60, 60)), size=(64, 64))
    second = call(*arguments)
    assert first.exit_code == second.exit_code == 0, second.output
    assert models["small"].located == 17
    assert "1 labelled in" in second.stderr
    assert "16 done before" in second.stderr


def test_another_threshold_needs_no_network(models, photos):
    arguments = (photos, "--labels", "red,blue", "--format", "coco")
    call(*arguments, "--output", "out")
    told = complaint(*arguments, "--output", "out", "--threshold", "0.9")
    assert "(thresholds was {'red': 0.1, 'blue': 0.1}, now {'red': 0.9" in told
    Path("cuts.csv").write_text("label,threshold\nred,1.0\n")
    told = ("--label-thresholds", "cuts.csv", "--labels-of", "out", "--json")
    result = call(*arguments, "--output", "two", *told)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert sum(found["boxes"]["red"].values()) == 0
    assert sum(found["boxes"]["blue"].values()) == 5
    assert found["backgrounds"] == 11
    assert models["small"].located == 16
    Path("cuts.csv").write_text("label,threshold\nrad,1.0\n")
    told = complaint(*arguments, "--output", "three", "--label-thresholds", "cuts.csv")
    assert told == "a threshold is for 'rad', which is no label"


def test_options_of_detection_and_of_an_ontology_count(models, photos):
    Path("ontology.yaml").write_text(
        "warm:\n  prompts: [red, something red]\n  threshold: 0.2\nblue: cold\n"
    )
    arguments = (photos, "--ontology", "ontology.yaml", "--json", "--quiet")
    result = call(*arguments, "--output", "out", "--threshold", "0.3")
    found = json.loads(result.stdout)
    assert found["classes"] == ["warm", "cold"]
    assert found["thresholds"] == {"warm": 0.2, "cold": 0.3}
    assert found["prompts"] == {"warm": ["red", "something red"], "cold": ["blue"]}
    result = call(*arguments, "--output", "top", "--top", "1", "--min-size", "15")
    found = json.loads(result.stdout)
    assert sum(sum(given.values()) for given in found["boxes"].values()) == 15 - 3


def test_compose_has_both_models_judge(models, photos):
    arguments = (photos, "--labels", "red,blue", "--compose", "--compose-margin", "0")
    result = call(*arguments, "--output", "out", "--quiet")
    assert result.exit_code == 0, result.output
    assert models["starter"].images == 20  # each box, once
    assert models["starter"].texts == 2
    found = json.loads(Path("out/dataset.json").read_text())
    assert found["model"] == "small-detector@1.0+small@1.0"
    assert found["compose_threshold"] == 0.7
    line = json.loads(Path("out/labels.jsonl").read_text().splitlines()[0])
    assert line["sources"] == {"boxes": "small-detector@1.0+small@1.0"}
    for box in line["boxes"]:
        assert box["classified"]["name"] == box["label"]
        assert box["classified"]["score"] != box["score"]
    told = ("--compose-threshold", "0.99", "--labels-of", "out")
    result = call(*arguments, "--output", "two", *told)
    assert "16 done before" in result.stderr
    told = complaint(photos, "--labels", "red,blue", "--output", "o", "--labels-of", "out")
    assert "was made with another --compose, or classifier of it" in told
    told = complaint(photos, "--labels", "red", "--output", "o", "--compose")
    assert told == "--compose has nothing to choose from: say two labels, or a --background"
    told = ("--background", "something", "--output", "one", "--compose", "--quiet")
    assert call(photos, "--labels", "red", *told).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say the labels in one way"),
        (("--labels", "a", "--format", "folders"), "--format folders holds a label for each image"),
        (("--labels", "a", "--format", "yalo"), "unknown format 'yalo'; known: coco, voc, yolo"),
        (("--labels", "a", "--unsure", "leave-out"), "--unsure is for --task classify"),
        (("--labels", "a", "--none-label", "x"), "--none-label means nothing for --task detect"),
        (("--labels-from", "t.csv"), "--labels-from means nothing for --task detect"),
        (("--labels", "a", "--background", "x"), "--background means nothing for --task detect"),
        (("--labels", "a", "--compose-margin", "0.2"), "--compose-margin is for --compose"),
        (("--labels", "a,b", "--compose", "--compose-threshold", "3"), "--compose-threshold must"),
        (("--labels", "a", "--min-size", "-1"), "--min-size must be pixels"),
        (("--labels", "a", "--split", "train=0.9"), "--split must have shares that add up to 1"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(models, photos, arguments, said):
    assert said in complaint(photos, "--output", "out", *arguments)
    assert not Path("out").exists()
    assert models["small"].located == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--format", "coco"), "--format coco holds boxes, and --task classify gives a label"),
        (("--backgrounds", "leave-out"), "--backgrounds is for --task detect"),
        (("--nms", "0.5"), "--nms means nothing for --task classify"),
        (("--compose",), "--compose means nothing for --task classify"),
    ],
)
def test_boxes_are_not_asked_of_classification(models, photos, arguments, said):
    told = ("--labels", "a,b", "--output", "out", *arguments)
    assert said in complaint(photos, *told, task="classify", model="starter")
    assert not Path("out").exists()


def test_a_model_that_finds_no_boxes_is_told(models, photos):
    told = complaint(photos, "--labels", "a", "--output", "out", model=None)
    assert "small@1.0 finds no boxes; " in told


def test_killed_at_random_moments(photos, tmp_path):
    def child(output, **options):
        arguments = (photos, "--task", "detect", "--labels", "red,blue", "--quiet")
        paths = (str(ROOT / "src"), str(ROOT))
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, "label", *map(str, arguments), "--output", str(output)],
            env={**child_environment(), "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    for growth in (4, 11):
        process = child(tmp_path / "out")
        journal = tmp_path / "out" / "labels.jsonl"
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") >= growth:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.0005)
        process.communicate(timeout=60)
    process = child(tmp_path / "out")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    whole = child(tmp_path / "whole")
    assert whole.communicate(timeout=60)[0] == out
    contents = [
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.suffix in (".txt", ".png", ".yaml")
        }
        for name in ("out", "whole")
    ]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 16 * 2 + 1


def test_photos_of_a_camera_held_upright(models, tmp_path):
    folder = tmp_path / "photos"
    photo(folder / "a.png", ("red", (8, 8, 40, 24)), size=(64, 48))
    with Image.open(folder / "a.png") as opened:
        exif = Image.Exif()
        exif[0x0112] = 6
        stored = opened.transpose(Image.Transpose.ROTATE_90)
        stored.save(folder / "b.jpg", exif=exif, quality=98, subsampling=0)
    result = call(folder, "--labels", "red,blue", "--output", "out", "--split", "all=1")
    assert result.stdout.splitlines()[-1] == "1 turned upright, as their EXIF says"
    lines = [Path(f"out/all/labels/{name}.txt").read_text().split() for name in "ab"]
    for one, other in zip(*lines, strict=True):
        assert abs(float(one) - float(other)) < 0.03
