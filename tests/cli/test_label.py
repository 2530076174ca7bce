"""`annotary label` as a user meets it: what it prints, what it makes, one line for what is wrong."""

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
from tests.small_encoder import COLOURS, SmallEncoder

ROOT = Path(__file__).parent.parent.parent

CHILD = """
import sys
from annotary.cli import label, main
from annotary.cli._annotating import Loaded
from tests.small_encoder import SmallEncoder

label.loaded = lambda name, options: Loaded(SmallEncoder(batch_size=1), "files", "files")
main(sys.argv[1:])
"""


@pytest.fixture
def encoder(monkeypatch, tmp_path):
    """The model that every name leads to."""
    model = SmallEncoder()
    monkeypatch.setattr(
        "annotary.cli.label.loaded", lambda name, options: Loaded(model, "files", "files")
    )
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))
    return model


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for colour, count in {"red": 10, "blue": 5, "white": 1}.items():
        for i in range(count):
            Image.new("RGB", (12 + i, 10), COLOURS[colour]).save(folder / f"{colour}-{i}.png")
    return folder


@pytest.fixture
def ontology(tmp_path):
    path = tmp_path / "ontology.yaml"
    path.write_text(
        "a red wall: warm\nsomething red: warm\nblue: cold\na photo of white: white\ngreen: green\n"
    )
    return path


def call(*arguments):
    return CliRunner().invoke(annotary, ["label", *map(str, arguments)])


def complaint(*arguments):
    result = call(*arguments)
    assert isinstance(result.exception, AnnotaryError), result.output
    assert result.stdout == ""
    text = str(result.exception)
    assert "\n" not in text
    return text


def child(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, "label", *map(str, arguments)],
        env={**child_environment(), "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_dataset_is_made_and_counted(encoder, photos, ontology, tmp_path):
    result = call(photos, "--ontology", ontology, "--output", "out")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "       train  val  test  all",
        "warm       8    1     1   10",
        "cold       3    1     1    5",
        "white      1    0     0    1",
        "all       12    2     2   16",
    ]
    told = result.stderr.splitlines()
    assert told[0].startswith("16 labelled in ")
    assert told[1:] == [
        "labels without an image: green",
        "labels with too few images to be in every part: white",
    ]
    assert sorted(path.name for path in Path("out").iterdir() if path.is_dir()) == [
        *("test", "train", "val")
    ]
    assert len(list(Path("out/train/warm").iterdir())) == 8
    assert encoder.texts == 5  # once, however many images there are


def test_it_goes_on(encoder, photos, ontology, tmp_path):
    arguments = (photos, "--ontology", ontology, "--output", "out")
    first = call(*arguments)
    Image.new("RGB", (50, 50), COLOURS["red"]).save(photos / "more.png")
    second = call(*arguments)
    assert encoder.images == 17
    assert first.exit_code == second.exit_code == 0
    assert "1 labelled in" in second.stderr
    assert "16 done before" in second.stderr
    assert second.stdout.splitlines()[-1].split() == ["all", *second.stdout.split()[-4:]]
    assert second.stdout.split()[-1] == "17"


def test_another_threshold_needs_no_network(encoder, photos, ontology):
    arguments = (photos, "--ontology", ontology)
    call(*arguments, "--output", "out")
    told = complaint(*arguments, "--output", "out", "--threshold", "0.9")
    assert "(thresholds was {}, now {'warm': 0.9" in told
    assert told.endswith("; choose another --output")
    result = call(*arguments, "--output", "two", "--threshold", "0.9", "--labels-of", "out")
    assert result.exit_code == 0
    assert encoder.images == 16
    assert "0 labelled in" in result.stderr
    assert "16 done before" in result.stderr
    told = ("--threshold", "0.8", "--split", "train=0.5,test=0.5", "--labels-of", "two")
    assert "16 done before" in call(*arguments, "--output", "three", *told).stderr
    assert encoder.images == 16


def test_one_label_alone_is_told_to_win_always(encoder, photos):
    note = "one label alone always wins: say --none-label NAME, or --multi-label with --threshold"
    told = {
        ("--labels", "red"): True,
        ("--labels", "red;blue"): True,
        ("--labels", "red", "--quiet"): False,
        ("--labels", "red", "--none-label", "other"): False,
        ("--labels", "red", "--multi-label", "--threshold", "0.5"): False,
        ("--labels", "red, blue"): False,
    }
    for number, (arguments, is_told) in enumerate(told.items()):
        result = call(photos, *arguments, "--output", f"out{number}")
        assert result.exit_code == 0, result.output
        assert (note in result.stderr) == is_told, arguments


def test_json_is_the_summary(encoder, photos, ontology, tmp_path):
    result = call(
        *(photos, "--ontology", ontology, "--output", "out", "--json", "--quiet"),
        *(
            "--split",
            "train=0.5,test=0.5",
            "--seed",
            "4",
            "--threshold",
            "0.9",
            "--format",
            "jsonl",
        ),
    )
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found == json.loads(Path("out/dataset.json").read_text())
    assert found["split"]["seed"] == 4
    assert found["split"]["shares"] == {"train": 0.5, "test": 0.5}
    assert found["thresholds"] == dict.fromkeys(found["classes"], 0.9)
    assert found["images"] + found["unsure"] == 16


def test_of_many_labels_the_largest_are_shown(encoder, photos, ontology, monkeypatch):
    monkeypatch.setattr("annotary.cli.label.MOST", 2)
    result = call(photos, "--ontology", ontology, "--output", "out")
    assert [line.split()[0] for line in result.stdout.splitlines()[1:4]] == ["warm", "cold", "all"]
    assert result.stdout.splitlines()[3].split()[-1] == "16"
    assert result.stdout.splitlines()[4] == "and 1 with fewer images, in dataset.json"


def test_unsure_images_are_told(encoder, photos, tmp_path):
    arguments = (photos, "--labels", "red, blue", "--threshold", "0.999")
    result = call(*arguments, "--output", "out")
    assert result.stdout.splitlines()[-1].endswith(" below the threshold, kept in unsure")
    result = call(*arguments, "--output", "out2", "--unsure", "leave-out")
    assert result.stdout.splitlines()[-1].endswith(" below the threshold, left out")


def test_failures_are_listed_and_tell_the_exit_code(encoder, photos, ontology, tmp_path):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    result = call(photos, "--ontology", ontology, "--output", "out")
    assert result.exit_code == 1
    assert "1 failed; see out/failures.jsonl" in result.stderr
    assert "broken.jpg" in Path("out/failures.jsonl").read_text()
    again = call(photos, "--ontology", ontology, "--output", "out")
    assert again.exit_code == 1
    assert "1 failed before (--retry-failed tries them again)" in again.stderr


def test_thresholds_of_labels_come_from_a_file(encoder, photos, tmp_path):
    Path("cuts.csv").write_text("label,threshold\nred,1.0\n")
    result = call(
        *(photos, "--labels", "red,blue,white", "--label-thresholds", "cuts.csv"),
        *("--output", "out", "--json"),
    )
    assert json.loads(result.stdout)["thresholds"] == {"red": 1.0}
    Path("cuts.csv").write_text("label,threshold\nrad,1.0\n")
    told = complaint(
        *(photos, "--labels", "red,blue", "--label-thresholds", "cuts.csv", "--output", "o")
    )
    assert told == "a threshold is for 'rad', which is no label"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say the labels in one way"),
        (("--labels", "a,b", "--format", "yalo"), "unknown format 'yalo'; known: csv, folders"),
        (("--labels", "a,b", "--format", "yolo"), "--format yolo holds boxes, and --task classify"),
        (("--labels", "a,b", "--split", "train=0.9"), "--split must have shares that add up to 1"),
        (("--labels", "a,b", "--seed", "-1"), "--seed must be at least 0"),
        (("--labels", "a,b", "--threshold", "2"), "--threshold must be in 0..1"),
        (
            ("--labels", "a,b", "--format", "csv", "--placing", "symlink"),
            "--placing is for formats",
        ),
        (("--ontology", "none.yaml"), "none.yaml: No such file"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(encoder, photos, arguments, said):
    assert said in complaint(photos, "--output", "out", *arguments)
    assert not Path("out").exists()
    assert encoder.images == 0


def test_an_input_is_never_the_output(encoder, photos):
    told = complaint(photos, "--labels", "red,blue", "--output", photos / "sorted")
    assert "whose images are read; choose another --output" in told
    assert len(list(photos.iterdir())) == 16


def test_a_model_without_texts_is_told(photos, colours):
    told = complaint(photos, "--labels", "a,b", "--model", f"dir:{colours}", "--output", "out")
    assert "does not know texts" in told


def test_the_starter_labels_photos(tmp_path, monkeypatch):
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))
    Path("ontology.yaml").write_text(
        "a photo of a cat: animal\na photo of a raccoon: animal\na cup of coffee: coffee\n"
        "boats in a harbour: scenery\nmountains: scenery\n"
    )
    photos = [ROOT / "examples" / f"{name}.jpg" for name in ("boats", "cat", "coffee", "mountains")]
    result = call(*photos, "--ontology", "ontology.yaml", "--output", "out", "--split", "all=1")
    assert result.exit_code == 0, result.output
    found = {path.name: path.parent.name for path in Path("out/all").rglob("*.jpg")}
    assert found == {
        "boats.jpg": "scenery",
        "cat.jpg": "animal",
        "coffee.jpg": "coffee",
        "mountains.jpg": "scenery",
    }


def test_killed_at_random_moments(photos, tmp_path):
    arguments = (photos, "--labels", "red,blue,white", "--output", tmp_path / "out", "--quiet")
    for growth in (4, 11):
        process = child(*arguments)
        journal = tmp_path / "out" / "labels.jsonl"
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") >= growth:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.0005)
        process.communicate(timeout=60)
    process = child(*arguments)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert out.split()[-1] == "16"
    names = [path.name for path in (tmp_path / "out").rglob("*.png")]
    assert sorted(names) == sorted(path.name for path in photos.iterdir())
    whole = child(*arguments[:3], "--output", tmp_path / "whole", "--quiet")
    assert whole.communicate(timeout=60)[0] == out
    for one, other in (("out", "whole"), ("whole", "out")):
        for path in (tmp_path / one).rglob("*.png"):
            assert (tmp_path / other / path.relative_to(tmp_path / one)).is_file()
