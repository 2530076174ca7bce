"""`annotary evaluate tagging`: the numbers are those of a loop over the images, and bad input is one line."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from annotary import errors
from annotary.evaluation import TagCounts, average_precision
from annotary.evaluation.tagging_files import read_full_metrics
from annotary.registry import load
from tests.cli.test_tag import annotary, complaint
from tests.conftest import colour_of

TAGS = ("red", "green", "blue")
Command = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in this process."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *arguments: object) -> Result:
        told = [str(argument) for argument in arguments]
        result = CliRunner().invoke(load("cli", name).command, told)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def truth_of(count: int) -> np.ndarray:
    """Which of the colours a photo has, to those who see a little noise, bool[n, 3]."""
    generator = np.random.default_rng(7)
    shown = np.array([colour_of(i) for i in range(count)]) / 255
    return shown + generator.normal(0, 0.2, shown.shape) > 0.5


@pytest.fixture
def table(photos: Callable[..., Path], tmp_path: Path) -> Path:
    """Forty photos in a table with their tags, of which the model does not know one; a photo is broken."""
    folder, truth = photos(40), truth_of(40)
    rows = []
    for i in range(40):
        tags = [name.upper() for name, is_true in zip(TAGS, truth[i], strict=True) if is_true]
        rows.append({"image": str(folder / f"{i:05}.png"), "tags": [*tags, "sunset_sky"]})
    (folder / "broken.png").write_bytes(b"no image")
    rows.append({"image": str(folder / "broken.png"), "tags": ["RED"]})
    path = tmp_path / "photos.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def report_of(result: Result) -> dict[str, Any]:
    return json.loads(result.stdout)


def expected(threshold: float) -> tuple[TagCounts, np.ndarray]:
    scores = np.array([colour_of(i) for i in range(40)], np.float32) / np.float32(255)
    counts = TagCounts(3)
    counts.update(scores >= np.float32(threshold), truth_of(40))
    return counts, average_precision(scores, truth_of(40))


def test_numbers_are_those_of_a_loop(run, colours, table):
    result = run("evaluate", "tagging", table, "--model", f"dir:{colours}", "--json", "--quiet")
    assert result.exit_code == 1
    report = report_of(result)
    counts, precision = expected(0.5)
    assert report["images"] == 40
    assert report["rules"][0]["rule"] == "preset balanced, threshold 0.5"
    assert report["rules"][0]["threshold"] == 0.5
    for kind in ("macro", "micro", "weighted"):
        mean = getattr(counts, kind)()
        found = report["rules"][0][kind]
        assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(
            (mean.precision, mean.recall, mean.f1)
        )
    by_tag = {one["tag"]: one for one in report["per_tag"]}
    assert set(by_tag) == {"RED", "GREEN", "BLUE"}
    for place, name in enumerate(TAGS):
        one = by_tag[name.upper()]
        assert one["index"] == place
        assert one["category"] == "colour"
        assert one["tp"] == counts.true_positives[place]
        assert one["fp"] == counts.false_positives[place]
        assert one["fn"] == counts.false_negatives[place]
        assert one["tn"] == counts.true_negatives[place]
        assert one["ap"] == pytest.approx(precision[place])
    assert report["map"]["macro"] == pytest.approx(precision.mean())
    assert report["tags_without_model"] == {"count": 1, "names": ["sunset_sky"]}
    assert [one["image"].endswith("broken.png") for one in report["failures"]] == [True]
    assert report["slices"]["category"][0]["name"] == "colour"
    assert sum(one["tags"] for one in report["slices"]["frequency"]) == 3


def test_saved_scores_give_the_same_without_the_images(run, colours, table, tmp_path):
    tell = ("--quiet", "--json")
    told = ("evaluate", "tagging", table, *tell)
    model = ("--model", f"dir:{colours}")
    first = report_of(run(*told, *model, "--save-scores", "kept"))
    assert len(first["failures"]) == 1
    assert first["images_without_scores"] == 0
    for photo in (tmp_path / "photos").iterdir():
        photo.unlink()
    again = report_of(run(*told, "--scores", "kept"))
    assert again["images"] == 40
    assert again["images_without_scores"] == 1
    for key in ("rules", "map", "slices", "curve", "calibration", "per_tag", "model", "weights"):
        assert again[key] == first[key]


def test_what_was_scored_is_not_scored_again(run, colours, table, tmp_path, monkeypatch):
    told = ("evaluate", "tagging", table, "--model", f"dir:{colours}", "--save-scores", "kept")
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:10]))
    assert report_of(run(*told, "--quiet", "--json"))["images"] == 10
    table.write_text("".join(lines[:40]))
    for i in range(10):
        (tmp_path / "photos" / f"{i:05}.png").write_bytes(b"changed")
    result = run(*told, "--quiet", "--json")
    assert result.exit_code == 0
    assert report_of(result)["images"] == 40
    saved = np.load(tmp_path / "kept" / "scores.npy")
    assert saved.shape == (40, 3)


def test_scores_of_the_tag_command_do(run, colours, table, tmp_path):
    folder = tmp_path / "photos"
    tagged = annotary(
        *(
            "tag",
            folder,
            "--model",
            f"dir:{colours}",
            "--save-scores",
            tmp_path / "kept",
            "--quiet",
        ),
        *("--output", tmp_path / "out.jsonl"),
    )
    assert tagged.returncode == 1, tagged
    report = report_of(run("evaluate", "tagging", table, "--scores", "kept", "--json", "--quiet"))
    assert report["images"] == 40
    counts, _ = expected(0.5)
    assert report["rules"][0]["macro"]["f1"] == pytest.approx(counts.macro().f1, abs=0.03)


def test_a_folder_with_texts(run, colours, photos):
    folder, truth = photos(12), truth_of(40)
    for i in range(12):
        tags = [name for name, is_true in zip(TAGS, truth[i], strict=True) if is_true]
        name = f"{i:05}.txt" if i % 2 else f"{i:05}.png.txt"
        if i != 5:
            (folder / name).write_text(", ".join([*tags, "photo"]))
    report = report_of(
        run("evaluate", "tagging", folder, "--model", f"dir:{colours}", "--json", "--quiet")
    )
    assert report["images"] == 11
    rows = [i for i in range(12) if i != 5]
    scores = np.array([colour_of(i) for i in rows], np.float32) / np.float32(255)
    counts = TagCounts(3)
    counts.update(scores >= 0.5, truth[rows])
    assert report["rules"][0]["micro"]["f1"] == pytest.approx(counts.micro().f1)


def test_texts_are_read_as_for_training(run, colours, photos):
    folder = photos(3)
    for i in range(3):
        (folder / f"{i:05}.txt").write_text(f"general:{TAGS[0]}\n{TAGS[1]}, x \\(y\\)")
    report = report_of(
        run("evaluate", "tagging", folder, "--model", f"dir:{colours}", "--json", "--quiet")
    )
    assert report["tags"] == 2
    assert report["tags_without_model"]["names"] == ["x (y)"]


def make_dataset(folder: Path, photos: Path, count: int) -> Path:
    """A training dataset as `annotary train dataset` writes it; a cached picture takes its original's place."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from annotary.training.dataset import index

    truth = truth_of(40)
    folder.mkdir()
    digests = [hashlib.sha256(f"{i}".encode()).digest() for i in range(count)]
    columns = {
        "id": pa.array([f"{i}" for i in range(count)]),
        "tags": pa.array(
            [np.flatnonzero(truth[i]).tolist() for i in range(count)], pa.list_(pa.int32())
        ),
        "sha256": pa.array(digests, pa.binary(32)),
        "image": pa.array([str(photos / f"{i:05}.png") for i in range(count)]),
    }
    parquet.write_table(pa.table(columns), folder / index.VALIDATION)
    parquet.write_table(pa.table(columns).slice(0, 5), folder / index.TRAIN)
    (folder / index.TOP_TAGS).write_text("".join(f"{name}\n" for name in TAGS))
    (folder / index.TAGS).write_text(
        "index,tag,category,train,validation\n0,red,warm,30000,9\n1,green,cold,2500,9\n2,blue,cold,7,9\n"
    )
    (folder / index.DESCRIPTION).write_text(
        json.dumps({"layout": index.LAYOUT, "cache_suffix": ".png"})
    )
    cached = index.cached_path(folder / index.IMAGES, digests[0].hex(), ".png")
    cached.parent.mkdir(parents=True)
    Image.new("RGB", (16, 16), colour_of(0)).save(cached)
    (photos / "00000.png").unlink()
    return folder


def test_a_training_dataset(run, colours, photos, tmp_path):
    folder = make_dataset(tmp_path / "dataset", photos(30), 30)
    report = report_of(
        run("evaluate", "tagging", folder, "--model", f"dir:{colours}", "--json", "--quiet")
    )
    assert report["images"] == 30
    assert report["frequency_of"] == "training images"
    assert [one["name"] for one in report["slices"]["category"]] == ["warm", "cold"]
    assert [one["name"] for one in report["slices"]["frequency"]] == [
        "< 10",
        "2,000 to 4,999",
        "20,000 to 99,999",
    ]
    assert [one["trained"] for one in report["per_tag"]] == [30000, 2500, 7]
    of_training = run(
        *("evaluate", "tagging", folder, "--model", f"dir:{colours}", "--json", "--quiet"),
        *("--split", "train"),
    )
    assert report_of(of_training)["images"] == 5


def test_thresholds_are_fitted_written_and_read(run, colours, table):
    told = ("evaluate", "tagging", table, "--model", f"dir:{colours}", "--json", "--quiet")
    report = report_of(
        run(*told, "--fit", "macro-f1", "--per", "tag", "--save-thresholds", "thresholds.csv")
    )
    own, fitted, others = report["rules"]
    assert fitted["rule"].startswith("fitted, macro-f1, one a tag, shrinkage")
    assert fitted["macro"]["f1"] >= own["macro"]["f1"]
    assert others["macro"]["f1"] <= fitted["macro"]["f1"]
    again = report_of(run(*told, "--tag-thresholds", "thresholds.csv"))
    assert again["rules"][0]["macro"] == fitted["macro"]
    assert again["rules"][0]["rule"].endswith("thresholds.csv")
    assert run(*told, "--fit", "p=r", "--save-thresholds", "thresholds.csv").exit_code == 1
    for _ in range(2):  # what it wrote itself it replaces
        run(*told, "--fit", "p=r", "--save-thresholds", "thresholds.toml")
        text = Path("thresholds.toml").read_text()
        assert re.fullmatch(r'\[thresholds\.balanced\]\n"\*" = 0\.\d+\n', text)


SCORED = (
    "name,category,balanced,precise\n"
    "red,colour,0.5,0.7\ngreen,colour,0.5,0.6\nblue,colour,0.5,0.8\n"
)
SOMETHING_ELSE = {
    "card.toml": 'name = "mine"\n',
    "notes.csv": "name,note\na,b\n",
    "mine.csv": "name,threshold\nred,0.5,because\n",
    "mine.toml": '[thresholds.balanced]\n"*" = 0.5\n[preprocess]\nsize = [1, 1]\n',
    "noted.toml": '# tried by hand\n[thresholds.balanced]\n"*" = 0.5\n',
    "dataset/tags.csv": "index,tag,category,train,validation\n0,red,colour,3,1\n",
    "shifted/tags.csv": "name,category,balanced,shift\nred,colour,0.5,1\n",
    "other/tags.csv": "name,category\ncat,animal\n",
    "presets/tags.csv": SCORED,
    "grouped/tags.csv": "name,category\nred,warm\n",
}


@pytest.mark.parametrize("name", SOMETHING_ELSE)
def test_thresholds_replace_nothing_but_thresholds(run, colours, table, name, monkeypatch):
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(SOMETHING_ELSE[name])

    def never(*_):
        raise AssertionError("work was done")

    monkeypatch.setattr("annotary.cli._tagging_scores.Scoring.batches", never)
    with pytest.raises(errors.UsageError) as caught:
        run(
            *("evaluate", "tagging", table, "--model", f"dir:{colours}", "--quiet"),
            *("--fit", "p=r", "--save-thresholds", name),
        )
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == SOMETHING_ELSE[name]


def test_a_card_is_not_begun_with_thresholds_alone(run, colours, table):
    told = ("evaluate", "tagging", table, "--model", f"dir:{colours}", "--fit", "p=r")
    with pytest.raises(errors.UsageError, match="put its table into the card"):
        run(*told, "--save-thresholds", "new/card.toml")
    assert not Path("new").exists()


def test_a_models_own_table_keeps_all_but_its_thresholds(run, colours, table, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(colours, model)
    own = model / "tags.csv"
    own.write_text(SCORED)
    card = (model / "card.toml").read_text()
    (model / "card.toml").write_text(card.split("[files]")[0])
    told = ("evaluate", "tagging", table, "--model", f"dir:{model}", "--quiet", "--json")
    told += ("--fit", "p=r", "--per", "tag", "--save-thresholds", own)
    fitted = report_of(run(*told))["per_tag"]
    with own.open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert {name: (row["category"], row["precise"]) for name, row in rows.items()} == {
        "red": ("colour", "0.7"),
        "green": ("colour", "0.6"),
        "blue": ("colour", "0.8"),
    }
    thresholds = {one["tag"].lower(): one["threshold"] for one in fitted}
    assert {name: float(row["balanced"]) for name, row in rows.items()} == pytest.approx(thresholds)
    (model / "card.toml").write_text(
        f'{card.split("[files]")[0]}\n[files]\n"tags.csv" = "{"0" * 64}"\n'
    )
    with pytest.raises(errors.UsageError, match="states the sha256"):
        run(*told)
    (model / "training").mkdir()
    (model / "training" / "checkpoint.json").write_text("{}")
    with pytest.raises(errors.UsageError, match="training goes on from"):
        run(*told)


@pytest.mark.parametrize(
    ("option", "name", "told"),
    [
        *((option, "photos", "is a folder; name a file") for option in ("--output", "--full-metrics")),
        ("--report", "page.html", "is a folder; name a file"),
        ("--output", "plain/x.json", "plain is no folder"),
        ("--full-metrics", "plain/new/x.txt", "plain is no folder"),
        ("--report", "plain/x.html", "plain is no folder"),
        ("--save-thresholds", "plain/x.csv", "plain is no folder"),
        ("--save-scores", "plain/x", "plain is no folder"),
        ("--save-scores", "plain", "plain is no folder"),
        ("--output", "x.html", "--output and --report are the same file"),
    ],
)  # fmt: skip
def test_places_are_looked_at_before_a_model_is_loaded(
    run, table, tmp_path, option, name, told, monkeypatch
):
    Path("plain").write_text("mine")
    Path("page.html").mkdir()
    more = ("--report", "x.html") if name == "x.html" else ("--fit", "p=r")
    with pytest.raises(errors.AnnotaryError, match=re.escape(told)) as caught:
        run("evaluate", "tagging", table, "--model", "dir:no-such-model", *more, option, name)
    assert "Errno" not in str(caught.value)
    assert Path("plain").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_where_nobody_can_write_is_found_by_trying(run, table):
    with pytest.raises(errors.OutputError, match="takes no files"):
        run(
            *("evaluate", "tagging", table, "--model", "dir:no-such-model"),
            *("--output", "/proc/x.json"),
        )


def test_what_cannot_be_written_in_the_end_loses_nothing_else(run, colours, table, monkeypatch):
    """A disk that is full, or a folder that goes away, is told after the numbers."""
    from annotary.cli import _evaluating

    def full(path: Path, _: object) -> None:
        raise errors.OutputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(_evaluating, "write_report", full)
    monkeypatch.setattr("annotary.cli._tagging_page.write_page", lambda path, *_: full(path, _))
    told = [
        *("evaluate", "tagging", str(table), "--model", f"dir:{colours}", "--quiet"),
        *("--output", "report.json", "--report", "page.html", "--full-metrics", "full.txt"),
    ]
    result = CliRunner().invoke(load("cli", "evaluate").command, told[1:])
    assert isinstance(result.exception, errors.OutputError)
    assert "report.json" in str(result.exception)
    assert "page.html" in str(result.exception)
    assert "mAP" in result.stdout
    assert len(read_full_metrics(Path("full.txt"))) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("posts.jsonl", '{"id": 1, "md5": "0", "file_url": "a.png", "tag_string": "red"}\n'),
        ("posts.sqlite", "SQLite format 3"),
        ("posts.tar", ""),
        ("instances.json", "{}"),
    ],
)
def test_what_only_training_reads_is_told_the_way(run, table, name, content):
    Path(name).write_text(content)
    with pytest.raises(errors.UsageError, match="annotary train dataset` makes a folder") as caught:
        run("evaluate", "tagging", name)
    assert "--label-column" not in str(caught.value)


def test_full_metrics_and_the_page(run, colours, table):
    result = run(
        *("evaluate", "tagging", table, "--model", f"dir:{colours}", "--quiet"),
        *("--full-metrics", "full-metrics.txt", "--report", "page.html", "--output", "report.json"),
    )
    report = json.loads(Path("report.json").read_text())
    records = read_full_metrics(Path("full-metrics.txt"))
    assert [one.f1 for one in records] == sorted(
        (one["f1"] for one in report["per_tag"]), reverse=True
    )
    assert sum(one.true_positives for one in records) == sum(one["tp"] for one in report["per_tag"])
    page = Path("page.html").read_text()
    assert page.count("<svg") == 3
    assert page.count("data:image/jpeg;base64,") >= 3
    assert "://" not in page  # nothing is fetched
    for one in report["per_tag"]:
        assert f">{one['tag']}</td>" in page
    for kind in ("macro", "micro", "weighted"):
        assert f"{report['rules'][0][kind]['f1']:.3f}" in page
        assert kind in result.stdout
    assert "preset balanced, threshold 0.5" in result.stdout
    assert (
        run(
            "evaluate", "tagging", table, "--model", f"dir:{colours}", "--report", "page.html"
        ).exit_code
        == 1
    )


def test_names_with_markup_do_no_harm(run, colours, photos, tmp_path):
    folder = photos(4)
    (tmp_path / "a.jsonl").write_text(
        "".join(
            json.dumps({"image": f"{folder}/0000{i}.png", "tags": ["<b>red</b>", "green"]}) + "\n"
            for i in range(4)
        )
    )
    (tmp_path / "aliases.csv").write_text("<b>red</b>,red\n")
    run(
        *("evaluate", "tagging", "a.jsonl", "--model", f"dir:{colours}", "--report", "page.html"),
        *("--aliases", "aliases.csv"),
    )
    page = (tmp_path / "page.html").read_text()
    assert "<b>red</b>" not in page
    assert "&lt;b&gt;red&lt;/b&gt;" in page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.jsonl"], "no such file or folder"),
        (["photos.jsonl", "--per", "tag"], "--fit asks for"),
        (["photos.jsonl", "--save-thresholds", "a.csv"], "--fit asks for"),
        (["photos.jsonl", "--fit", "p=r", "--save-thresholds", "a.txt"], "must end in"),
        (
            ["photos.jsonl", "--fit", "p=r", "--per", "tag", "--save-thresholds", "a.toml"],
            "single tags",
        ),
        (["photos.jsonl", "--scores", "a", "--save-scores", "b"], "saved already"),
        (["photos.jsonl", "--scores", "nothing"], "no saved scores"),
        (["photos.jsonl", "--scores", "nothing", "--model", "joytag"], "takes the place"),
        (["photos.jsonl", "--report", "page.txt"], ".html"),
        (["photos.jsonl", "--full-metrics", "photos.jsonl"], "expected a record"),
        (["photos.jsonl", "--output", "photos.jsonl"], "no report"),
        (["photos", "--tag-column", "x"], "columns are for tables"),
        (["photos.jsonl", "--shrinkage", "-1", "--fit", "p=r"], "--shrinkage must be"),
    ],
)
def test_what_cannot_be_is_one_line(run, table, arguments, told):
    with pytest.raises(errors.AnnotaryError, match=re.escape(told)) as caught:
        run("evaluate", "tagging", *arguments, "--quiet")
    assert "\n" not in str(caught.value)


def test_nothing_in_common_is_told_on_one_line(colours, photos, tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"image": f"{photos(1)}/00000.png", "tags": ["x"]})
    )
    result = annotary("evaluate", "tagging", tmp_path / "a.jsonl", "--model", f"dir:{colours}")
    assert "no tag in common" in complaint(result)


def test_scores_of_originals_are_those_of_a_training_datasets_pictures(
    run, colours, photos, tmp_path
):
    folder = photos(30)
    tagged = annotary(
        *(
            "tag",
            folder,
            "--model",
            f"dir:{colours}",
            "--save-scores",
            tmp_path / "kept",
            "--quiet",
        ),
        *("--output", tmp_path / "out.jsonl"),
    )
    assert tagged.returncode == 0, tagged
    dataset = make_dataset(tmp_path / "dataset", folder, 30)
    report = report_of(run("evaluate", "tagging", dataset, "--scores", "kept", "--json", "--quiet"))
    assert report["images"] == 30
    # The command goes on with what the other one began: only the reduced picture has a new name.
    model = ("--model", f"dir:{colours}")
    run("evaluate", "tagging", dataset, *model, "--save-scores", "kept", "--json", "--quiet")
    assert np.load(tmp_path / "kept" / "scores.npy").shape == (31, 3)


@pytest.mark.parametrize(
    ("least", "told"), [(1, "tags that no image has,"), (5, "of fewer than 5")]
)
def test_tags_outside_of_the_means_are_told(least, told, capsys):
    from annotary.cli._evaluate_tagging import _tell_left_out

    counts = {"tags": 3, "tags_in_means": 1, "minimum_support": least}
    _tell_left_out({"tags_without_model": {"count": 0}, "tags_without_truth": {}, **counts})
    assert told in capsys.readouterr().err
