"""`annotary evaluate`: what is measured is what a loop over the images says, and bad input is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from annotary import errors, preprocess
from annotary.registry import load
from annotary.runtime import RuntimeOptions
from annotary.tasks.class_vectors import class_vectors
from annotary.tasks.label_sets import LabelSet, read_templates
from annotary.tasks.text_cache import TextCache
from tests.cli.test_tag import annotary
from tests.small_encoder import COLOURS, SIDE, SmallEncoder

Command = Callable[..., Result]


@pytest.fixture
def model() -> SmallEncoder:
    return SmallEncoder()


@pytest.fixture
def run(model: SmallEncoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command in this process with the small model, whatever --model says."""
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "cache"))

    def loaded(name: str, options: RuntimeOptions) -> Any:
        return SimpleNamespace(
            model=model,
            weights="w",
            fingerprint="f",
            text_cache=lambda: TextCache.of("f", model),  # type: ignore[arg-type]
        )

    for name in ("_evaluate_zero_shot", "_evaluate_retrieval", "calibrate"):
        monkeypatch.setattr(f"annotary.cli.{name}.loaded", loaded)

    def call(name: str, *arguments: object) -> Result:
        told = [str(argument) for argument in arguments]
        result = CliRunner().invoke(load("cli", name).command, told)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def paint(path: Path, colour: tuple[int, ...], doubt: float = 0.0, seed: int = 0) -> None:
    """A photo of a colour; with doubt, of a mixture of it and another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    other = np.random.default_rng(seed).integers(0, 256, 3)
    mixed = (1 - doubt) * np.array(colour) + doubt * other
    pixels = np.broadcast_to(mixed, (SIDE, SIDE, 3)).astype(np.uint8)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)


@pytest.fixture
def colours_folder(tmp_path: Path) -> Path:
    """Ten photos of each of six colours, some of them hard to tell; one is broken."""
    folder = tmp_path / "colours"
    for i, (name, colour) in enumerate(COLOURS.items()):
        for k in range(10):
            paint(folder / name / f"{k}.png", colour, 0.09 * k, 100 * i + k)
    (folder / "red" / "broken.png").write_bytes(b"no image")
    return folder


def embedded(model: SmallEncoder, paths: list[Path]) -> Any:
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths]).astype(np.float32)
    return model.embed_images(
        preprocess.to_batch(list(pixels.astype(np.uint8)), model.card.preprocess)
    )


def test_zero_shot_says_what_a_loop_says(run, model, colours_folder, tmp_path):
    report = tmp_path / "report.json"
    saved = tmp_path / "predictions.jsonl"
    result = run(
        *("evaluate", "zero-shot", colours_folder, "--templates", "imagenet", "--json"),
        *("--output", report, "--save-predictions", saved),
    )
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told == json.loads(report.read_text())
    paths = sorted(path for path in colours_folder.rglob("*.png") if path.name != "broken.png")
    names = sorted(COLOURS)
    vectors = class_vectors(
        model, [LabelSet.of([name], read_templates("imagenet")).classes[0] for name in names]
    ).vectors
    scores = embedded(model, paths) @ vectors.T
    true = np.array([names.index(path.parent.name) for path in paths])
    best = scores.argmax(axis=1)
    assert 0.5 < (best == true).mean() < 1
    assert told["images"] == 60
    assert told["classes"] == 6
    assert told["templates"] == 80
    assert told["top1"] == pytest.approx((best == true).mean())
    assert told["mean_per_class"] == pytest.approx(told["top1"])
    order = np.argsort(-scores, axis=1, kind="stable")
    assert told["top5"] == pytest.approx((order[:, :5] == true[:, None]).any(axis=1).mean())
    logits = 20.0 * scores.astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert told["mean_confidence"] == pytest.approx(shares.max(axis=1).mean(), abs=1e-5)
    assert [one["class"] for one in told["per_class"]] == names
    assert sum(one["right"] for one in told["per_class"]) == (best == true).sum()
    assert sum(one["images"] for one in told["confusions"]) == (best != true).sum()
    assert [one["image"] for one in told["failures"]] == [str(colours_folder / "red/broken.png")]
    assert "broken.png" in result.stderr
    assert "1 image could not be read" in result.stderr
    lines = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [line["image"] for line in lines] == list(map(str, paths))
    for line, row, ranked, own in zip(lines, scores, order, true, strict=True):
        assert line["class"] == names[own]
        assert [one["class"] for one in line["predictions"]] == [names[k] for k in ranked[:5]]
        assert line["predictions"][0]["score"] == pytest.approx(row.max(), abs=1e-5)
        assert line["rank"] == ranked.tolist().index(own) + 1
    # texts are embedded once and remembered, images once
    assert model.images == 60 + 60
    before = model.texts
    run("evaluate", "zero-shot", colours_folder, "--templates", "imagenet", "--quiet")
    assert model.texts == before


def test_the_table_for_people(run, colours_folder):
    result = run("evaluate", "zero-shot", colours_folder, "--protocol", "cifar10")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].endswith("colours: 60 images of 6 classes, 1 template, small@1.0")
    assert lines[2].startswith("top-1 ")
    assert "with 95 % certainty" in lines[2]
    assert any(line.startswith("cifar10 ") for line in lines)
    assert "most confused" in result.stdout
    assert "published numbers on cifar10 are of 18 templates; here there are 1" in result.stderr
    assert "published numbers on cifar10 are of 10 classes; here there are 6" in result.stderr


def test_a_class_may_have_several_names(run, tmp_path):
    for name in ("n1", "n2"):
        paint(tmp_path / "data" / name / "1.png", COLOURS["red" if name == "n1" else "blue"])
    (tmp_path / "names.json").write_text(
        json.dumps({"n2": ["blue", "navy"], "n1": ["red", "ruby"]})
    )
    templates = ("--template", "a {}.", "--template", "the {}.")
    result = run(
        *("evaluate", "zero-shot", tmp_path / "data", "--classes", tmp_path / "names.json"),
        *(*templates, "--json"),
    )
    told = json.loads(result.stdout)
    assert told["top1"] == 1.0
    assert told["roc_auc"] == 1.0
    assert told["top5"] is None
    assert [one["class"] for one in told["per_class"]] == ["n2", "n1"]
    assert told["per_class"][1]["names"] == ["red", "ruby"]
    assert result.exit_code == 0
    again = run(
        *("evaluate", "zero-shot", tmp_path / "data", "--classes", tmp_path / "names.json"),
        *(*templates, "--json", "--classnorm"),
    )
    assert json.loads(again.stdout)["mean_confidence"] is None


def test_numbers_are_no_names(run, tmp_path):
    for name in ("n01440764", "n01443537"):
        paint(tmp_path / "data" / name / "1.png", COLOURS["red"])
    result = run("evaluate", "zero-shot", tmp_path / "data")
    assert "classes are called n01440764 and so on; say their names with --classes" in result.stderr


def test_the_model_has_seen_all_names_in_all_templates(run, model, tmp_path):
    paint(tmp_path / "data/x/1.png", COLOURS["red"])
    (tmp_path / "names.txt").write_text("x\tred\truby\ny\tblue\n")
    told = ("--template", "a {}.", "--template", "the {}.", "--classes", tmp_path / "names.txt")
    run("evaluate", "zero-shot", tmp_path / "data", *told)
    assert model.calls == [("a red.", "the red.", "a ruby.", "the ruby.", "a blue.", "the blue.")]


def test_tables_with_labels(run, tmp_path):
    for name, colour in COLOURS.items():
        paint(tmp_path / f"{name}.png", colour)
    rows = [f"{name}.png,{k}" for k, name in enumerate(COLOURS)]
    (tmp_path / "t.csv").write_text("\n".join(["picture,number", *rows, "red.png,", "no.png,0"]))
    (tmp_path / "names.txt").write_text("\n".join(COLOURS))
    columns = ("--image-column", "picture", "--label-column", "number")
    result = run(
        *("evaluate", "zero-shot", tmp_path / "t.csv", "--classes", tmp_path / "names.txt"),
        *(*columns, "--json"),
    )
    told = json.loads(result.stdout)
    assert (told["images"], told["top1"], told["unlabelled"]) == (6, 1.0, 1)
    assert len(told["failures"]) == 1
    assert result.exit_code == 1


def test_a_report_takes_the_place_of_a_report_alone(run, tmp_path):
    paint(tmp_path / "data/red/1.png", COLOURS["red"])
    paint(tmp_path / "data/blue/1.png", COLOURS["blue"])
    command = ("evaluate", "zero-shot", tmp_path / "data", "--quiet")
    for option in ("--output", "--save-predictions"):
        target = tmp_path / "there.json"
        target.write_text("a letter\n")
        with pytest.raises(errors.UsageError, match="there already and"):
            run(*command, option, target)
        assert target.read_text() == "a letter\n"
        target.unlink()
        assert run(*command, option, target).exit_code == 0
        before = target.read_text()
        assert run(*command, option, target).exit_code == 0
        assert target.read_text() == before


def test_a_failing_run_leaves_the_predictions_of_before(run, tmp_path, model, monkeypatch):
    paint(tmp_path / "data/red/1.png", COLOURS["red"])
    paint(tmp_path / "data/blue/1.png", COLOURS["blue"])
    command = (
        "evaluate",
        "zero-shot",
        tmp_path / "data",
        "--save-predictions",
        tmp_path / "p.jsonl",
    )
    run(*command)
    before = (tmp_path / "p.jsonl").read_text()

    def fail(batch: Any) -> Any:
        raise errors.ModelError("the network broke")

    monkeypatch.setattr(model, "embed_images", fail)
    with pytest.raises(errors.ModelError, match="the network broke"):
        run(*command)
    assert (tmp_path / "p.jsonl").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".tmp") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none",), "no such file or folder: 'none'"),
        (("data", "--template", "a photo"), "--template must have {}"),
        (("data", "--template", "a {}", "--templates", "imagenet"), "--templates take the place"),
        (("data", "--templates", "none.txt"), "--templates none.txt: No such file"),
        (("data", "--classes", "none.txt"), "none.txt: No such file"),
        (("data", "--protocol", "mnist2"), "unknown protocol 'mnist2'"),
        (("data", "--protocol", "kinetics700"), "kinetics700 cannot be of 2 classes"),
        (("one", "--protocol", "hateful-memes"), "hateful-memes cannot be of 1 classes"),
        (("data", "--output", "x", "--save-predictions", "x"), "need a file each"),
        (("data", "--calibration", "other.json"), "--calibration is of other@1, but the model is"),
        (("data", "--calibration", "several.json"), "made with --multi-label"),
        (("data", "--calibration", "several.json", "--classnorm"), "leave out --calibration"),
        (("data", "--label-column", "x"), "columns are for tables"),
        (("one", "--classnorm"), "--classnorm needs two or more"),
        (("bad",), "no image of bad could be classified; bad/x/1.png: "),
    ],
)
def test_what_makes_no_sense_is_one_line(run, arguments, message):
    for place in ("data/red/1.png", "data/blue/2.png", "one/red/1.png"):
        paint(Path(place), COLOURS["red"])
    Path("bad/x").mkdir(parents=True)
    Path("bad/x/1.png").write_bytes(b"bad")
    Path("other.json").write_text(json.dumps({"model": "other@1"}))
    Path("several.json").write_text(json.dumps({"model": "small@1.0", "multi_label": True}))
    with pytest.raises(errors.UsageError) as error:
        run("evaluate", "zero-shot", *arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def pairs(folder: Path) -> Path:
    """A table of photos with captions."""
    rows = []
    for name, colour in COLOURS.items():
        paint(folder / "images" / f"{name}.png", colour)
        captions = [f"a photo of a {name} wall", f"{name}"]
        rows.append({"file": f"images/{name}.png", "captions": captions, "split": "dev"})
    rows.append({"file": "images/lost.png", "captions": ["nothing", "at all"], "split": "dev"})
    rows.append({"file": "images/red.png", "captions": ["of another split"], "split": "train"})
    path = folder / "index.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_retrieval_both_ways(run, tmp_path):
    table = pairs(tmp_path / "data")
    report = tmp_path / "report.json"
    result = run("evaluate", "retrieval", table, "--split", "dev", "--json", "--output", report)
    told = json.loads(result.stdout)
    assert told == json.loads(report.read_text())
    assert (told["images"], told["captions"]) == (6, 12)
    assert [one["image"] for one in told["failures"]] == ["images/lost.png"]
    assert result.exit_code == 1
    for direction, queries, candidates in (("text_to_image", 12, 6), ("image_to_text", 6, 12)):
        one = told[direction]
        assert (one["queries"], one["candidates"]) == (queries, candidates)
        assert one["recall_at_1"] == one["recall_at_10"] == one["mean_reciprocal_rank"] == 1.0
        assert one["median_rank"] == 1.0
    assert told["recall_sum"] == 6.0
    shown = run("evaluate", "retrieval", table, "--split", "dev").stdout.splitlines()
    assert shown[0].endswith("index.jsonl: 6 images, 12 captions, small@1.0")
    assert shown[3].split() == ["images", "by", "caption", *["100.0%"] * 3, "1", "1.000"]


def test_retrieval_elsewhere_and_of_nothing(run, tmp_path):
    table = pairs(tmp_path / "data")
    moved = tmp_path / "index.jsonl"
    table.rename(moved)
    told = json.loads(
        run("evaluate", "retrieval", moved, "--images", tmp_path / "data", "--json").stdout
    )
    assert (told["images"], told["captions"]) == (6, 13)
    Path("lost.csv").write_text("image,caption\nlost.png,a lost photo\n")
    with pytest.raises(errors.NothingToDo, match=r"no image of lost.csv could be read; lost.png: "):
        run("evaluate", "retrieval", "lost.csv")


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def starter_reads_texts() -> None:
    from annotary.models import load_model

    if not hasattr(load_model("starter"), "embed_texts"):
        pytest.skip("the starter does not know texts here")


def test_the_starter_from_the_shell(starter_reads_texts: None, tmp_path: Path) -> None:
    rows = ["image,caption"]
    for name in ("cat", "boats", "flower", "mountains", "raccoon", "rocket"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.jpg").write_bytes((EXAMPLES / f"{name}.jpg").read_bytes())
        rows.append(f"photos/{name}/{name}.jpg,a photo of {name}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    made = annotary("evaluate", "zero-shot", "photos", "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["images"] == told["classes"] == 6
    assert told["top1"] >= 0.5
    made = annotary("evaluate", "retrieval", "pairs.csv", "--output", "report.json")
    assert made.returncode == 0, made.stderr
    assert json.loads(Path("report.json").read_text())["text_to_image"]["recall_at_5"] >= 0.5
    made = annotary("calibrate", "photos", "--output", "calibration.json")
    assert made.returncode == 0, made.stderr
    labels = ("--labels", "cat,boats,flower,mountains,raccoon,rocket")
    used = ("--calibration", "calibration.json", "--json")
    made = annotary("classify", "photos", *labels, *used)
    assert made.returncode == 0, made.stderr
    assert len(made.stdout.splitlines()) == 6


def test_errors_are_one_line_from_the_shell() -> None:
    for command in (("evaluate", "zero-shot"), ("evaluate", "retrieval"), ("calibrate",)):
        made = annotary(*command, "none")
        assert made.returncode == 2
        assert made.stderr == "annotary: no such file or folder: 'none'\n"
