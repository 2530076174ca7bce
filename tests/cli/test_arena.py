"""`annotary arena`: small taggers of different families on the same photos."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from annotary import errors
from annotary.cli.arena import command
from annotary.evaluation.tagging_files import mean_rates, read_detailed_metrics
from annotary.registry import load
from tests.taggers import make_joytag, make_wd

Command = Callable[..., Result]
COMMON = ("1girl", "^_^", "saber (fate)")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the arena in this process."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        told = [str(argument) for argument in arguments]
        result = CliRunner().invoke(load("cli", "arena").command, told)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def models(tmp_path: Path) -> str:
    """A WD tagger and a JoyTag that nobody trained, which know some of the same tags."""
    wd = make_wd(tmp_path / "wd")
    joytag = make_joytag(tmp_path / "joytag")
    return f"dir:{wd},dir:{joytag}"


@pytest.fixture
def table(photos: Callable[..., Path], tmp_path: Path) -> Path:
    """Thirty photos with tags, of which one is known to one model alone."""
    folder, generator = photos(30), np.random.default_rng(5)
    names = (*COMMON, "no_humans")
    rows = [
        {
            "image": str(folder / f"{i:05}.png"),
            "tags": [name for name in names if generator.random() < 0.5],
        }
        for i in range(30)
    ]
    path = tmp_path / "photos.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_models_are_compared_on_what_all_know(run, models, table, tmp_path):
    told = (table, "--models", models, "--min-support", "2", "--rounds", "20", "--quiet")
    result = run(*told, "--json", "--details", "detailed_metrics.txt", "--report", "page.html")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["tags"] == 3
    assert [one["tag"] for one in report["per_tag"]] == sorted(COMMON)
    assert report["tags_without_model"]["names"] == ["no_humans"]
    assert {one["name"] for one in report["models"]} == {"wd", "joytag"}
    details = read_detailed_metrics(tmp_path / "detailed_metrics.txt")
    means = mean_rates(details)
    for one in report["models"]:
        assert means[one["name"]].f1 == pytest.approx(one["macro"]["f1"])
        assert means[one["name"]].average_precision == pytest.approx(one["macro"]["ap"])
        low, high = one["intervals"]["f1"]
        assert low <= high
    page = (tmp_path / "page.html").read_text()
    assert "://" not in page
    for name in ("wd", "joytag", *sorted(COMMON)):
        assert name in page
    shown = run(*told)
    assert "tags won by AP" in shown.stdout
    assert run(*told, "--report", "page.html", "--details", "detailed_metrics.txt").exit_code == 0


def test_saved_scores_are_reused_and_an_image_is_decoded_once(
    run, models, table, tmp_path, monkeypatch
):
    from annotary import images

    told = (table, "--models", models, "--min-support", "2", "--rounds", "0", "--quiet", "--json")
    decoded = []
    real = images.decode

    def counted(*arguments, **options):
        decoded.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr("annotary.images.decode", counted)
    first = json.loads(run(*told, "--save-scores", "kept").stdout)
    assert len(decoded) == 30
    again = json.loads(run(*told, "--save-scores", "kept").stdout)
    assert len(decoded) == 30
    assert again == first
    folders = sorted(str(path) for path in (tmp_path / "kept").iterdir())
    assert len(folders) == 2
    of_folders = run(
        *(table, "--models", ",".join(folders), "--min-support", "2", "--rounds", "0"),
        *("--quiet", "--json"),
    )
    macro = [
        {one["name"]: one["macro"] for one in report["models"]}
        for report in (first, json.loads(of_folders.stdout))
    ]
    assert macro[0] == macro[1]


def test_a_threshold_of_a_model(run, models, table):
    told = (table, "--models", models, "--min-support", "2", "--rounds", "0", "--quiet", "--json")
    report = json.loads(run(*told, "--threshold", "joytag=0").stdout)
    (joytag,) = (one for one in report["models"] if one["name"] == "joytag")
    assert joytag["rule"] == "threshold 0"
    assert joytag["macro"]["recall"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--models", "starter"], "two or more"),
        (["--models", "starter,starter"], "two or more different"),
        (["--models", "MODELS", "--threshold", "other=0.5"], "of no model"),
        (["--models", "MODELS", "--threshold", "wd=x"], "must be like"),
        (["--models", "MODELS", "--threshold", "wd=7"], "must be like"),
        (["--models", "MODELS", "--min-support", "31"], "lower --min-support"),
        (["--models", "MODELS", "--report", "page.txt"], ".html"),
        (["--models", "MODELS", "--details", "photos.jsonl"], "expected a tag"),
        (["--models", "MODELS", "--output", "photos.jsonl"], "no report"),
    ],
)
def test_what_cannot_be_is_one_line(run, models, table, arguments, told):
    called = [models if one == "MODELS" else one for one in arguments]
    with pytest.raises(errors.AnnotaryError, match=re.escape(told)) as caught:
        run(table, *called, "--quiet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["--details", "--report", "--output", "--save-scores"])
def test_places_are_looked_at_before_models_are_loaded(run, table, option, tmp_path):
    (tmp_path / "plain").write_text("mine")
    with pytest.raises(errors.UsageError, match="plain is no folder"):
        run(table, "--models", "dir:no,dir:none", option, "plain/x.html")


def test_what_cannot_be_written_in_the_end_loses_nothing_else(run, models, table, monkeypatch):
    from annotary.evaluation import arena_report

    def page(_: object) -> str:
        (table.parent / "gone").rmdir()
        (table.parent / "gone").write_text("somebody else's")
        return ""

    (table.parent / "gone").mkdir()
    monkeypatch.setattr(arena_report, "arena_page", page)
    told = [str(table), "--models", models, "--min-support", "2", "--rounds", "0", "--quiet"]
    told += ["--report", "gone/page.html", "--details", "details.txt", "--output", "report.json"]
    result = CliRunner().invoke(command, told)
    assert isinstance(result.exception, errors.OutputError)
    assert "tags won by AP" in result.stdout
    assert len(read_detailed_metrics(table.parent / "details.txt")) == 3
    assert json.loads((table.parent / "report.json").read_text())["tags"] == 3


def test_a_seed_below_0_is_refused_before_anything_is_worked_out(table):
    found = CliRunner().invoke(command, [str(table), "--models", "a,b", "--seed", "-1"])
    assert found.exit_code == 2
    assert "not in the range" in found.output
