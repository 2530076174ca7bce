"""`annotary detect` as a user meets it, with a small random detector.

The command runs in the process of the test, as libraries that run networks take seconds to import.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from annotary import cli
from annotary.records import Annotation, from_line
from tests.owl import make_owl

LONG = "a b c d e f g h i j k l m n o p q r s t"


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def annotary(monkeypatch, capfd) -> Callable[..., Result]:
    """Runs a command line."""
    monkeypatch.setattr(cli, "_stop_on_request", lambda signals: None)
    monkeypatch.setattr(os, "_exit", sys.exit)

    def run(*arguments: str | Path) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return Result(ended.value.code, *capfd.readouterr())

    return run


def complaint(result: Result) -> str:
    """The one line that a wrong call gets, without traceback and with exit code 2."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("annotary: ")
    return result.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return f"dir:{make_owl(tmp_path_factory.mktemp('models') / 'small', 'owlv2')}"


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(2)
    for name, (width, height) in {
        "a.png": (120, 80),
        "b.jpg": (70, 110),
        "more/a.png": (64, 64),
    }.items():
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def records(text: str) -> dict[str, Annotation]:
    found = [from_line(line) for line in text.splitlines()]
    return {str(record.image): record for record in found if isinstance(record, Annotation)}


def test_a_run_from_words_to_boxes(annotary, model, photos, tmp_path):
    """One line an image, records with `--json`, and a file that goes on where it stopped, with pictures."""
    asked = ("--model", model, "--labels", f"cat, dog, {LONG}")
    result = annotary("detect", photos, *asked)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{photos}/a.png: ")
    assert f"longer than small@unversioned reads, so the end is left out: {LONG}\n" in result.stderr
    assert "3 searched in " in result.stderr

    printed = records(annotary("detect", photos, *asked, "--json", "--quiet").stdout)
    boxes = printed[f"{photos}/a.png"].boxes
    assert boxes == tuple(sorted(boxes, key=lambda box: -box.score))
    assert all(box.score > 0.1 for box in boxes)
    assert f"{boxes[0].label} {boxes[0].score:.2f} at " in lines[0]
    assert printed[f"{photos}/a.png"].sources == {"boxes": "small@unversioned"}

    output, drawings = tmp_path / "boxes.jsonl", tmp_path / "drawn"
    command = ("detect", photos, *asked, "--output", output, "--draw", drawings)
    assert annotary(*command).returncode == 0
    assert records(output.read_text()) == printed
    names = sorted(str(p.relative_to(drawings)) for p in drawings.rglob("*.*"))
    assert names == ["a.png", "b.jpg", "more/a.png"]

    # What a stopped run left: the first record, and a part of the second.
    whole = output.read_bytes()
    output.write_bytes(whole[: whole.index(b"\n") + 20])
    (drawings / "more/a.png").unlink()
    result = annotary(*command)
    assert "2 searched in " in result.stderr
    assert "1 done before" in result.stderr
    assert output.read_bytes() == whole
    assert (drawings / "more/a.png").is_file()
    message = complaint(
        annotary("detect", photos, *asked, "--output", output, "--threshold", "0.2", "--quiet")
    )
    assert "threshold was 0.1, now 0.2" in message


def test_examples_tiles_and_options(annotary, model, photos):
    like = ("--like", photos / "a.png", "--like", photos / "b.jpg", "--box", "5,5,90,70")
    result = annotary(
        *("detect", photos / "b.jpg", "--model", model, *like, "--box", "all", "--json"),
        *("--like-name", "thing", "--labels", "cat", "--templates", "owl", "--multi-label"),
        *("--tile", "64", "--top", "4", "--min-size", "3", "--nms-scope", "all", "--quiet"),
    )
    assert result.returncode == 0, result.stderr
    (record,) = records(result.stdout).values()
    assert 0 < len(record.boxes) <= 4
    assert {box.label for box in record.boxes} <= {"thing", "cat"}
    for box in record.boxes:
        left, top, right, bottom = box.xyxy
        assert 0 <= left <= right - 3 <= 67
        assert 0 <= top <= bottom - 3 <= 107


def test_thresholds_of_labels(annotary, model, photos, tmp_path):
    path = tmp_path / "thresholds.csv"
    path.write_text("label,threshold\ncat,0.999999\n")
    asked = ("detect", photos, "--model", model, "--labels", "cat, dog", "--threshold", "0")
    result = annotary(*asked, "--label-thresholds", path, "--json", "--quiet")
    assert {b.label for r in records(result.stdout).values() for b in r.boxes} == {"dog"}
    path.write_text("bird,0.5\n")
    asked = ("detect", photos, "--model", model, "--labels", "cat", "--label-thresholds", path)
    assert "'bird', which is no label" in complaint(annotary(*asked))


def test_an_image_that_cannot_be_read_is_told_and_the_others_are_done(
    annotary, model, photos, tmp_path
):
    (photos / "broken.jpg").write_bytes(b"no image")
    output = tmp_path / "boxes.jsonl"
    asked = ("detect", photos, "--model", model, "--labels", "cat", "--output", output)
    result = annotary(*asked)
    assert result.returncode == 1
    assert "3 searched" in result.stderr
    assert "1 failed" in result.stderr
    assert len(records(output.read_text())) == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "say what to look for: --labels, --labels-file or --ontology"),
        (("--labels", " , "), "there are no labels"),
        (("--labels", "a", "--labels-file", "b.txt"), "in one way"),
        (("--labels-file", "nowhere.txt"), "nowhere.txt: No such file"),
        (("--labels", "cat", "--template", "photo"), "--template must have {}"),
        (("--labels", "cat", "--threshold", "2"), "--threshold must be in 0..1"),
        (("--labels", "cat", "--nms", "2"), "--nms must be in 0..1"),
        (("--labels", "cat", "--tile", "3"), "--tile must be pixels"),
        (("--labels", "cat", "--tile-overlap", "1"), "--tile-overlap must be in 0..0.9"),
        (("--like", "nowhere.jpg"), "nowhere.jpg"),
        (("--like", "{photo}", "--template", "a {}"), "are for labels"),
        (("--like", "{photo}", "--box", "10,10,10,50"), "has no area"),
        (
            ("--like", "{photo}", "--box", "10,10,500,50"),
            "not within its image, which has 120 x 80",
        ),
        (("--like", "{photo}", "--box", "ten"), "left, top, right and bottom edge in pixels"),
        (("--like", "{photo}", "--box", "1,1,9,9", "--box", "all"), "one --box for each --like"),
        (("--box", "1,1,9,9", "--labels", "cat"), "one --box for each --like"),
        (("--labels", "cat", "--like-name", "x"), "--like-name"),
        (("--like", "{photo}", "--labels", "a"), "'a' is a label and the name of an example"),
        (("--labels", "cat", "--draw", "{photo}"), "is a file; say a folder"),
        (("--labels", "cat", "--format", "txt"), "txt"),
        (("--labels", "cat", "--runtime", "onnxruntime"), "runs in torch alone"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(annotary, model, photos, arguments, told):
    filled = [argument.replace("{photo}", str(photos / "a.png")) for argument in arguments]
    message = complaint(annotary("detect", photos, "--model", model, *filled))
    assert told in message
    assert not list(photos.parent.glob("*.failures.jsonl"))


def test_a_model_without_the_ability_names_those_that_have_it(annotary, photos):
    result = annotary("detect", photos, "--labels", "cat", "--quiet")
    if result.returncode == 2:
        assert "finds no boxes; say --model owlv2-base-patch16-ensemble" in result.stderr


def test_labels_that_are_said_twice_count_once(annotary, model, photos):
    asked = ("detect", photos / "a.png", "--model", model, "--json", "--quiet")
    once, twice = (annotary(*asked, "--labels", labels) for labels in ("cat, dog", "cat, dog, cat"))
    assert once.stdout == twice.stdout
    assert json.loads(once.stdout)["boxes"]


def test_queries_are_remembered_between_runs(annotary, model, photos, tmp_path):
    asked = ("detect", photos / "a.png", "--model", model, "--labels", "cat, dog", "--quiet")
    first = annotary(*asked)
    (cache,) = tmp_path.rglob("*.sqlite")
    before = cache.read_bytes()
    assert annotary(*asked).stdout == first.stdout
    assert cache.read_bytes() == before
    cache.unlink()
    assert annotary(*asked, "--no-text-cache").stdout == first.stdout
    assert not list(tmp_path.rglob("*.sqlite"))


def test_a_classifier_looks_at_each_box(annotary, photos, model, tmp_path, monkeypatch):
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))
    detect = ("detect", photos, "--model", model, "--labels", "cat, dog", "--threshold", "0")
    detect = (*detect, "--top", "2", "--json", "--quiet")
    alone = records(annotary(*detect).stdout)
    never = records(annotary(*detect, "--compose", "--compose-threshold", "1").stdout)
    always = records(annotary(*detect, "--compose", "--compose-threshold", "0").stdout)
    assert len(alone) == len(always) == 3
    for name, before in alone.items():
        assert never[name].boxes == before.boxes
        after = always[name]
        places = sorted(box.xyxy for box in before.boxes)
        assert sorted(box.xyxy for box in after.boxes) == places
        assert {box.score for box in after.boxes}.isdisjoint(box.score for box in before.boxes)
        assert "+starter@" in after.sources["boxes"]


def test_composing_needs_words(annotary, photos, model):
    like = ("--like", photos / "a.png", "--compose")
    told = complaint(annotary("detect", photos, "--model", model, *like))
    assert "--compose is for labels in words" in told
    told = complaint(annotary("detect", photos, "--labels", "cat", "--compose-model", "x"))
    assert "--compose-model is for --compose" in told


def test_pictures_do_not_go_among_the_images(annotary, photos, model):
    detect = ("detect", photos, "--model", model, "--labels", "cat", "--draw")
    for place in (photos, photos / "more" / "drawn"):
        assert "whose images are read" in complaint(annotary(*detect, place))
