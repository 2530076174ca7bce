"""`annotary evaluate detection` and `annotary calibrate --task detect`: boxes of files and of models."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from annotary import errors
from annotary.evaluation.box_files import found_in, read_drawn
from annotary.evaluation.detection import measure_detection
from annotary.records import from_line
from annotary.registry import load
from annotary.runtime import RuntimeOptions
from annotary.tasks.text_cache import TextCache
from annotary.tasks.zero_shot import read_thresholds
from tests.cli.test_evaluate import Command
from tests.cli.test_tag import annotary
from tests.evaluation.boxes import made_up
from tests.small_detector import INPUT, SmallDetector
from tests.small_encoder import COLOURS

pytest.importorskip("faster_coco_eval")

NAMES = ("red", "green", "blue")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command in this process with the small detector, whatever --model says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))
    model = SmallDetector()

    def loaded(name: str, options: RuntimeOptions) -> Any:
        cache = lambda: TextCache.of("f", model)  # noqa: E731
        return SimpleNamespace(model=model, weights="w", fingerprint="f", text_cache=cache)

    for module in ("_finding", "detect"):
        monkeypatch.setattr(f"annotary.cli.{module}.loaded", loaded, raising=False)
    monkeypatch.setattr("annotary.cli._annotating.loaded", loaded)

    def call(name: str, *arguments: object) -> Result:
        told = [str(argument) for argument in arguments]
        result = CliRunner().invoke(load("cli", name).command, told)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Eight grey images with two or three spots each; the spots of one are not where they are drawn."""
    generator = np.random.default_rng(1)
    images, annotations = [], []
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(1, 9):
        pixels = np.full((2 * INPUT, INPUT, 3), 128, np.uint8)
        for place in range(2 + number % 2):
            name = NAMES[int(generator.integers(0, 3))]
            left, top = int(generator.integers(2, 30)), 4 + 40 * place
            width, height = (int(side) for side in generator.integers(12, 30, 2))
            mixed = 0.75 * np.array(COLOURS[name]) + 0.25 * generator.integers(0, 256, 3)
            pixels[top : top + height, left : left + width] = mixed
            moved = 30 if number == 8 else 0
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": NAMES.index(name) + 1,
                    "bbox": [left + moved, top + moved, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append(
            {"id": number, "file_name": f"{number}.png", "width": INPUT, "height": 2 * INPUT}
        )
    categories = [{"id": place + 1, "name": name} for place, name in enumerate(NAMES)]
    path = tmp_path / "truth.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path


def test_boxes_that_a_model_finds(run, truth, tmp_path):
    report = tmp_path / "report.json"
    command = ("evaluate", "detection", truth, "--images", "photos", "--model", "small")
    result = run(*command, "--output", report, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told == json.loads(report.read_text())
    assert (told["model"], told["rules"]) == ("small-detector@1.0", "coco")
    assert (told["images"], told["labels"]) == (8, 3)
    assert told["boxes"] == 20
    assert 0.5 < told["metrics"]["ap50"] < 1.0
    assert [one["label"] for one in told["per_label"]] == list(NAMES)
    assert sum(one["drawn"] for one in told["per_label"]) == 20
    # and the same through a file
    made = tmp_path / "made.jsonl"
    labels = ("--labels", ",".join(NAMES), "--threshold", "0", "--output", made)
    assert run("detect", "photos", *labels).exit_code == 0
    again = json.loads(run("evaluate", "detection", truth, "--predictions", made, "--json").stdout)
    assert again["metrics"] == pytest.approx(told["metrics"])
    assert again["per_label"] == told["per_label"]
    shown = run(*command, "--output", report).stdout.splitlines()
    assert shown[0].endswith(
        f"truth.json: 8 images, 20 boxes of 3 labels, {told['found']} found, small-detector@1.0"
    )
    assert shown[2].split()[0] == "AP"
    assert shown[-3].split()[0] in NAMES


def test_images_that_cannot_be_read_are_images_in_which_nothing_is_found(run, truth, tmp_path):
    command = ("evaluate", "detection", truth, "--images", "photos", "--model", "small", "--json")
    before = json.loads(run(*command).stdout)
    (tmp_path / "photos" / "1.png").write_bytes(b"no image")
    result = run(*command)
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["images"] == 8
    assert told["boxes"] == before["boxes"]
    assert told["metrics"]["ar_100"] < before["metrics"]["ar_100"]
    assert [one["image"] for one in told["failures"]] == [str(Path("photos") / "1.png")]
    assert "in which nothing was found: 1" in result.stderr


def test_made_up_boxes_of_a_file_and_the_rules_of_lvis(run, tmp_path):
    for is_lvis in (False, True):
        truth, results = made_up(7, is_lvis=is_lvis)
        results.append({"image_id": 4000, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5})
        known = truth["images"][0]["id"]
        results.append({"image_id": known, "category_id": 444, "bbox": [0, 0, 1, 1], "score": 0.5})
        Path("truth.json").write_text(json.dumps(truth))
        Path("results.json").write_text(json.dumps(results))
        result = run(
            "evaluate", "detection", "truth.json", "--predictions", "results.json", "--json"
        )
        told = json.loads(result.stdout)
        assert told["rules"] == ("lvis" if is_lvis else "coco")
        assert told["unknown_images"] == ["4000"]
        assert told["unknown_labels"] == {"444": 1}
        assert "labels that the truth does not have, left out: 1 (444)" in result.stderr
        assert ("ap_rare" in told["metrics"]) == is_lvis
        shown = run("evaluate", "detection", "truth.json", "--predictions", "results.json").stdout
        assert ("AP rare" in shown) == is_lvis
        assert ("AR 300" in shown) == is_lvis


def test_nothing_drawn_and_nothing_found(run, truth):
    value = json.loads(truth.read_text())
    Path("empty.json").write_text(json.dumps({**value, "annotations": []}))
    Path("none.json").write_text("[]")
    result = run("evaluate", "detection", "empty.json", "--predictions", "none.json")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[2].split() == ["AP", "-"]
    assert "no box was drawn" in result.stderr
    told = json.loads(
        run("evaluate", "detection", truth, "--predictions", "none.json", "--json").stdout
    )
    assert told["metrics"]["ap"] == 0.0


def test_datasets_of_yolo_are_measured_on(run, truth, tmp_path):
    value = json.loads(truth.read_text())
    (tmp_path / "photos").rename(tmp_path / "images")
    (tmp_path / "labels").mkdir()
    for image in value["images"]:
        lines = [
            f"{one['category_id'] - 1} {(left + width / 2) / INPUT} {(top + height / 2) / (2 * INPUT)}"
            f" {width / INPUT} {height / (2 * INPUT)}"
            for one in value["annotations"]
            if one["image_id"] == image["id"]
            for left, top, width, height in [one["bbox"]]
        ]
        (tmp_path / "labels" / f"{image['id']}.txt").write_text("\n".join(lines))
    (tmp_path / "data.yaml").write_text("names: [red, green, blue]\ntrain: images\n")
    command = ("--model", "small", "--json")
    expected = json.loads(
        run("evaluate", "detection", truth, "--images", "images", *command).stdout
    )
    told = json.loads(run("evaluate", "detection", tmp_path, "--split", "train", *command).stdout)
    assert told["metrics"] == pytest.approx(expected["metrics"])
    assert told["images"] == 8


def test_sizes_that_differ_are_told(run, truth, tmp_path):
    record = {"image": "1.png", "width": 2 * INPUT, "height": INPUT, "boxes": []}
    Path("made.jsonl").write_text(json.dumps(record))
    result = run("evaluate", "detection", truth, "--predictions", "made.jsonl", "--json")
    assert json.loads(result.stdout)["other_sizes"] == ["1.png"]
    assert "images that had another size than the truth says: 1 (1.png)" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--predictions FILE or --model NAME"),
        (("--predictions", "a.jsonl", "--model", "small"), "choose one"),
        (("--predictions", "none.jsonl"), "No such file"),
        (
            ("--predictions", "a.jsonl", "--nms", "0.5", "--labels", "red"),
            "--labels, --nms: not with",
        ),
        (("--model", "small", "--images", "none"), "no such folder"),
        (("--model", "small", "--template", "x"), "template"),
        (("--model", "small", "--templates", "none.txt"), "--templates none.txt: No such file"),
        (("--model", "small", "--labels", "dog,tree"), "no label of what was found"),
        (("--predictions", "truth.json"), "'score' is missing"),
    ],
)
def test_what_makes_no_sense_is_one_line(run, truth, arguments, told):
    with pytest.raises(errors.UsageError, match=told) as error:
        run("evaluate", "detection", truth, "--images", "photos", *arguments)
    assert "\n" not in str(error.value)


def test_thresholds_that_are_learned_are_those_that_detect_takes(run, truth, tmp_path):
    path = tmp_path / "thresholds.csv"
    command = ("calibrate", truth, "--task", "detect", "--images", "photos", "--model", "small")
    result = run(*command, "--minimum-boxes", 5, "--output", path, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert read_thresholds(path) == pytest.approx(told["thresholds"])
    assert set(told["thresholds"]) == set(NAMES)
    measured = told["measured"]
    assert measured["fitted_each"]["macro_f1"] >= measured["fitted_single"]["macro_f1"]
    assert told["parts"] == 8
    assert {"held_out_single", "held_out_each"} <= set(measured)
    # with them `detect` gives what was promised
    made = tmp_path / "made.jsonl"
    labels = ("--labels", ",".join(NAMES), "--label-thresholds", path, "--output", made)
    assert run("detect", "photos", *labels).exit_code == 0
    drawn = read_drawn(truth)
    records = [from_line(line) for line in made.read_text().splitlines()]
    matches = measure_detection(drawn, found_in(records, drawn).boxes).matches
    has_one = set(told["thresholds"].values()) == {told["single"]}
    expected = measured["fitted_single" if has_one else "fitted_each"]
    assert matches.are_right.sum() / len(matches.scores) == pytest.approx(expected["precision"])
    assert matches.are_right.sum() / matches.drawn.sum() == pytest.approx(expected["recall"])
    shown = run(*command)
    assert "F1, mean of labels, images not fitted on" in shown.stdout
    assert "nothing is written without --output FILE" in shown.stderr
    assert "for `annotary detect`: --label-thresholds" in run(*command, "--output", path).stderr


def test_thresholds_have_the_names_that_the_detector_gives(run, truth):
    value = json.loads(truth.read_text())
    for category in value["categories"]:
        category["name"] = category["name"].upper()
    value["categories"].append({"id": 4, "name": "never found"})
    truth.write_text(json.dumps(value))
    labels = ("--images", "photos", "--model", "small", "--labels", "red,blue")
    result = run("calibrate", truth, "--task", "detect", *labels, "--json")
    told = json.loads(result.stdout)
    assert set(told["thresholds"]) == {"red", "blue"}
    assert [one["label"] for one in told["per_label"]] == ["RED", "GREEN", "BLUE", "never found"]


def test_labels_with_few_boxes_take_the_threshold_of_all(run, truth):
    command = ("calibrate", truth, "--task", "detect", "--images", "photos", "--model", "small")
    result = run(*command, "--minimum-boxes", 50, "--json")
    told = json.loads(result.stdout)
    assert set(told["thresholds"].values()) == {told["single"]}
    assert not any(one["own"] for one in told["per_label"])
    assert (
        "labels with fewer than 50 boxes have the threshold of all: red, green, blue"
        in result.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--output", "thresholds.json"), "ends in .csv"),
        (("--output", "notes.csv"), "holds no thresholds"),
        (("--label-column", "x"), "--label-column: not with --task detect"),
        (("--none-label", "x", "--thresholds", "f1"), "--none-label, --thresholds: not with"),
        (("--task", "classify", "--nms", "0.5"), "--nms: not with --task classify"),
        (("--split", "val"), "--split is for datasets"),
        (("--task", "classify", "--minimum-boxes", "9"), "--minimum-boxes: not with"),
        (("--predictions", "logits.json"), "scores must be in 0..1"),
    ],
)
def test_calibrations_that_make_no_sense_are_one_line(run, truth, arguments, told):
    Path("notes.csv").write_text("a,b,c\n")
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 3.5}
    Path("logits.json").write_text(json.dumps([box]))
    with pytest.raises(errors.UsageError, match=told) as error:
        run("calibrate", truth, "--task", "detect", *arguments)
    assert "\n" not in str(error.value)


def test_nothing_right_is_nothing_to_learn(run, truth):
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
    Path("wrong.json").write_text(json.dumps([box]))
    with pytest.raises(errors.NothingToDo, match="no box that was found is right, of 1"):
        run("calibrate", truth, "--task", "detect", "--predictions", "wrong.json")


def test_from_the_shell(truth, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = json.loads(truth.read_text())
    results = [
        {**{key: one[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.5}
        for one in value["annotations"]
    ]
    Path("results.json").write_text(json.dumps(results))
    made = annotary(
        "evaluate", "detection", "truth.json", "--predictions", "results.json", "--json"
    )
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["metrics"]["ap"] == pytest.approx(1.0)
    command = ("calibrate", "truth.json", "--task", "detect", "--predictions", "results.json")
    made = annotary(*command, "--output", "thresholds.csv")
    assert made.returncode == 0, made.stderr
    assert Path("thresholds.csv").read_text().startswith("label,threshold\nred,0.4999\n")
    made = annotary("evaluate", "detection", "none.json", "--predictions", "results.json")
    assert made.returncode == 2
    assert made.stderr == "annotary: none.json: No such file or directory\n"
