"""All tasks at once, with small networks of every family: one decoding, one record, towers that are shared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from annotary import images
from annotary.cli import annotary
from annotary.errors import AnnotaryError
from annotary.records import Annotation, from_line
from tests.blip import make_blip
from tests.owl import make_owl

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 210)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for kind in ("captioning", "vqa", "itm"):
        make_blip(folder / kind, kind)
    make_owl(folder / "owl", "owlvit")
    return {path.name: f"dir:{path}" for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (60, 40), colour).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


def every(models):
    return (
        *("--tasks", "tag,classify,caption,ask,detect,embed", "--labels", "red, green, blue"),
        *("--caption-model", models["captioning"], "--matcher", models["itm"]),
        *("--ask-model", models["vqa"], "--question", "what is it?"),
        *("--detect-model", models["owl"], "--box-threshold", "0.0", "--box-top", "3"),
    )


def call(*arguments):
    return CliRunner().invoke(annotary, list(map(str, arguments)), standalone_mode=False)


def test_one_record_has_what_every_model_said(folder, models, monkeypatch):
    decoded = []
    real = images.decode

    def counting(data, **more):
        decoded.append(len(data))
        return real(data, **more)

    monkeypatch.setattr(images, "decode", counting)
    result = call("annotate", folder, *every(models), "--output", "all.jsonl", "--quiet")
    assert result.return_value == 0, result.output
    assert len(decoded) == len(COLOURS)  # once each, for six tasks and five networks
    records = [from_line(line) for line in Path("all.jsonl").read_text().splitlines()]
    assert [type(record) for record in records] == [Annotation] * 3
    for record in records:
        assert {label.name for label in record.labels} == {*COLOURS}
        assert record.tags
        assert record.captions
        assert record.captions[0].match is not None
        assert [answer.question for answer in record.answers] == ["what is it?"]
        assert 1 <= len(record.boxes) <= 3
        assert {box.label for box in record.boxes} <= {"red", "green", "blue"}
        assert record.embedding is not None
        assert record.sources["captions"] == "captioning@unversioned+itm@unversioned"
        assert record.sources["boxes"] == "owl@unversioned"
        assert record.sources["labels"] == record.sources["embedding"]
    again = call("annotate", folder, *every(models), "--output", "all.jsonl")
    assert "3 done before" in again.stderr


def test_it_is_what_each_command_says_by_itself(folder, models):
    call("annotate", folder, *every(models), "--output", "all.jsonl", "--quiet")
    together = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    alone = {
        "captions": ("caption", "--model", models["captioning"], "--matcher", models["itm"]),
        "answers": ("ask", "--model", models["vqa"], "--question", "what is it?"),
        "boxes": (
            *("detect", "--model", models["owl"], "--labels", "red, green, blue"),
            *("--threshold", "0.0", "--top", "3"),
        ),
        "labels": ("classify", "--labels", "red, green, blue"),
        "tags": ("tag",),
    }
    for part, (command, *options) in alone.items():
        result = call(command, folder, *options, "--json", "--quiet")
        assert result.return_value == 0, result.output
        found = [json.loads(line)[part] for line in result.stdout.splitlines()]
        expected = [record[part] for record in together]
        if part in ("labels", "tags"):
            # The sixth digit depends on which images are in a batch with one.
            for one, other in zip(found, expected, strict=True):
                scores = {entry["name"]: entry["score"] for entry in one}
                assert scores == pytest.approx(
                    {entry["name"]: entry["score"] for entry in other}, abs=3e-6
                )
        else:
            assert found == expected, part


def test_a_catalogue_holds_it_all(folder, models):
    pytest.importorskip("lancedb")
    from annotary.catalog import Catalog

    result = call("annotate", folder, *every(models), "--catalog", "photos.catalog", "--quiet")
    assert result.return_value == 0, result.output
    held = Catalog.open("photos.catalog").records([0, 1, 2])
    assert all(
        record.captions and record.answers and record.boxes and record.tags for record in held
    )
    assert len(held) == 3


def test_labels_of_boxes_may_be_others(folder, models):
    result = call(
        *("annotate", folder, "--tasks", "classify,detect", "--labels", "red, green, blue"),
        *("--detect-model", models["owl"], "--box-labels", "a car", "--box-threshold", "0"),
        *("--json", "--quiet"),
    )
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert {box["label"] for record in records for box in record["boxes"]} == {"a car"}
    assert {label["name"] for record in records for label in record["labels"]} == {*COLOURS}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--tasks", "ask"), "--tasks ask needs --question"),
        (("--tasks", "detect"), "--tasks detect needs labels"),
        (("--tasks", "tag", "--beams", "2"), "--beams is for --tasks caption"),
        (("--tasks", "tag", "--box-nms", "0.5"), "--box-nms is for --tasks detect"),
        (("--tasks", "tag", "--question", "why?"), "--question is for --tasks ask"),
        (("--tasks", "tag", "--matcher", "x"), "--matcher is for --tasks caption"),
        (("--tasks", "detect", "--box-nms", "2", "--labels", "a"), "--box-nms must be in 0..1"),
        (("--tasks", "caption", "--captions", "0"), "--captions must be at least 1"),
        (("--tasks", "caption", "--min-match", "0.5"), "--min-match needs --matcher"),
        (
            (
                "--tasks",
                "caption,detect",
                "--labels",
                "a",
                "--output",
                "tags.csv",
                "--box-top",
                "0",
            ),
            "--box-top must be whole and at least 1",
        ),
        (("--tasks", "caption", "--format", "folders", "--output", "x"), "cannot hold captions"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(folder, options, told):
    result = call("annotate", folder, *options)
    assert isinstance(result.exception, AnnotaryError)
    assert told in str(result.exception)
