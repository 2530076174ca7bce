"""`annotary calibrate`: what it writes makes `annotary classify` neither surer nor less sure than it is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotary import errors
from annotary.tasks.calibration import read_calibration
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.zero_shot import ZeroShot, ZeroShotOptions
from tests.cli.test_evaluate import Command, colours_folder, embedded, model, paint, run
from tests.small_encoder import COLOURS

__all__ = ["colours_folder", "model", "run"]
"""Fixtures."""


def scores_of(task: ZeroShot, vectors: Any) -> Any:
    return np.stack([task.scores(row)[0] for row in task.logits(vectors)])


def test_folders_give_a_temperature(run: Command, model, colours_folder, tmp_path):
    path = tmp_path / "calibration.json"
    result = run("calibrate", colours_folder, "--output", path)
    assert result.exit_code == 1  # one image is broken
    found = read_calibration(path)
    assert found.model == "small@1.0"
    assert not found.multi_label
    assert not found.thresholds
    assert found.temperature != 1
    measured = found.measured
    assert (measured["images"], measured["failed"], measured["labels"]) == (60, 1, 6)
    assert measured["after"]["nll"] < measured["before"]["nll"]
    assert measured["after"]["accuracy"] == measured["before"]["accuracy"]
    shown = result.stdout.splitlines()
    assert shown[1] == f"temperature {found.temperature:.3f}"
    assert shown[3].split() == ["before", "after"]
    # it does in the task what it says
    labels = LabelSet.of(sorted(COLOURS))
    paths = sorted(path for path in colours_folder.rglob("*.png") if path.name != "broken.png")
    vectors = embedded(model, paths)
    task = ZeroShot(model, labels, calibration=found)
    true = np.array([sorted(COLOURS).index(path.parent.name) for path in paths])
    losses = -np.log(scores_of(task, vectors)[np.arange(60), true])
    assert losses.mean() <= measured["after"]["nll"]  # which was measured on other images
    # and in what measures it
    command = ("evaluate", "zero-shot", colours_folder, "--json")
    before, after = (
        json.loads(run(*command, *more).stdout) for more in ((), ("--calibration", path))
    )
    assert after["top1"] == before["top1"]
    assert after["calibration_error"] < before["calibration_error"]
    assert before["mean_confidence"] == pytest.approx(
        measured["before"]["mean_confidence"], abs=1e-5
    )
    again = run("calibrate", colours_folder, "--output", path, "--json")
    assert json.loads(again.stdout) == found.to_json() == json.loads(path.read_text())


def test_tables_with_several_labels_give_thresholds(run: Command, model, tmp_path):
    rows = []
    for k in range(60):
        name = list(COLOURS)[k % 6]
        paint(tmp_path / f"{k}.png", COLOURS[name], doubt=0.3, seed=k)
        labels = ["coloured", name] if name in ("red", "green") else [name]
        rows.append({"image": f"{k}.png", "labels": labels if k % 5 else []})
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "calibration.json"
    told = ("--labels", ", ".join(COLOURS), "--multi-label", "--background", "a thing")
    result = run("calibrate", table, *told, "--output", path)
    assert result.exit_code == 0
    assert "labels of the dataset that are not offered: coloured" in result.stderr
    found = read_calibration(path)
    assert found.multi_label
    assert set(found.thresholds) == set(COLOURS)
    assert found.measured["images"] == 60
    assert found.measured["after"]["nll"] < found.measured["before"]["nll"]
    assert found.measured["after"]["macro_f1"] >= found.measured["before"]["macro_f1"]
    labels = LabelSet.of(list(COLOURS), background=["a thing"])
    task = ZeroShot(model, labels, ZeroShotOptions(multi_label=True), calibration=found)
    assert task.settings()["temperature"] == found.temperature


def test_labels_of_an_ontology_and_images_of_others(run: Command, colours_folder, tmp_path):
    ontology = tmp_path / "o.yaml"
    ontology.write_text("a red wall: red\na blue wall: blue\na green wall: green\n")
    result = run("calibrate", colours_folder, "--ontology", ontology, "--json", "--quiet")
    told = json.loads(result.stdout)["measured"]
    assert (told["images"], told["left_out"], told["labels"]) == (30, 30, 3)
    assert "images with none of the labels, which are left out: 30" in result.stderr
    precise = run(
        *("calibrate", colours_folder, "--target-precision", "0.9", "--json", "--none-label", "no")
    )
    assert len(json.loads(precise.stdout)["thresholds"]) == 6


def test_too_few_images_are_left_as_they_are(run: Command, tmp_path):
    for name in ("red", "blue"):
        paint(tmp_path / "data" / name / "1.png", COLOURS[name])
    result = run("calibrate", tmp_path / "data")
    assert result.exit_code == 0
    assert "2 images are too few to fit anything (10 are needed)" in result.stderr
    assert "nothing is written without --output FILE" in result.stderr
    assert "temperature 1.000" in result.stdout


def test_spaces_stand_for_underscores(run: Command, tmp_path):
    for name in ("red_wall", "blue_wall"):
        paint(tmp_path / "data" / name / "1.png", COLOURS[name[:-5]])
    told = ("--labels", "red wall, blue wall", "--json")
    assert json.loads(run("calibrate", tmp_path / "data", *told).stdout)["measured"]["images"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none",), "no such file or folder: 'none'"),
        (("data", "--labels", "cat, dog"), "none of the dataset's labels (blue, red"),
        (("data", "--labels", "a", "--labels-file", "b"), "say the labels in one way"),
        (("data", "--labels-from", "t.csv"), "--labels-from is for images with labels"),
        (("data", "--template", "x"), "--template must have {}"),
        (("data", "--none-label", "red"), "none_label must differ"),
        (("data", "--target-precision", "2"), "--target-precision must be in 0..1"),
        (("data", "--output", "letter.json"), "letter.json is there already and is no calibration"),
        (("bad",), "no image of bad could be read"),
    ],
)
def test_what_makes_no_sense_is_one_line(run: Command, arguments, message):
    paint(Path("data/red/1.png"), COLOURS["red"])
    paint(Path("data/blue/2.png"), COLOURS["blue"])
    Path("bad/x").mkdir(parents=True)
    Path("bad/x/1.png").write_bytes(b"bad")
    Path("letter.json").write_text("{}")
    with pytest.raises(errors.UsageError) as error:
        run("calibrate", *arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert Path("letter.json").read_text() == "{}"
