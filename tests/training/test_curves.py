"""Curves of training runs: what is read from their tables, and the picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from click.testing import CliRunner

from annotary.cli import annotary
from annotary.errors import UsageError
from annotary.training.curves import (
    MARK,
    MOST_RUNS,
    curves_picture,
    curves_table,
    read_curves,
    smooth,
)

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 200 steps that was measured twice."""
    folder = tmp_path / "my-run"
    folder.mkdir()
    rows = [f"1,{step},{step * 64},{8 / step + 2},0.004" for step in range(1, 201)]
    text = "stage,step,samples,loss,learning_rate\n" + "\n".join(rows) + "\n"
    (folder / "steps.csv").write_text(text, encoding="utf-8")
    (folder / "validation.csv").write_text(
        "stage,step,samples,loss,map,macro_f1\n"
        "1,100,6400,3.0,0.25,0.125\n1,200,12800,2.5,0.2,0.1\n",
        encoding="utf-8",
    )
    return folder


def test_what_a_run_wrote_is_read(run: Path) -> None:
    curves = read_curves(run)
    assert curves.name == "my-run"
    assert len(curves.loss) == 200
    assert curves.loss[0] == (64.0, 10.0)
    assert curves.measured["map"] == ((6400.0, 0.25), (12800.0, 0.2))
    assert curves_table([curves]) == [
        ("my-run", 12800, {"loss": 2.5, "map": 0.2, "macro_f1": 0.1, "best_map": 0.25})
    ]


def test_rows_that_are_being_written_and_numbers_that_are_none_are_left_out(run: Path) -> None:
    with (run / "steps.csv").open("a", encoding="utf-8") as file:
        file.write("1,201,12864,nan,0\n1,202,129")
    assert len(read_curves(run).loss) == 200


def test_smoothing_keeps_the_mean() -> None:
    points = tuple((float(x), float(x % 3)) for x in range(240))
    smoothed = smooth(points, 80)
    assert len(smoothed) == 80
    assert smoothed == tuple((3.0 * place + 1, 1.0) for place in range(80))
    assert smooth(points[:5], 80) == points[:5]


def test_the_picture_has_a_line_for_each_run_in_each_plot(run: Path, tmp_path: Path) -> None:
    again = run.rename(tmp_path / "first <run>")
    curves = read_curves(again)
    picture = curves_picture([curves, curves])
    root = ElementTree.fromstring(picture)
    plots = root.findall(f"{SVG}svg")
    told = [plot.get("aria-label") for plot in plots]
    assert told == [
        "loss of a step",
        "loss on validation images",
        "mAP on validation images",
        "macro F1 on validation images, at the threshold",
    ]
    for plot in plots:
        drawn = [path for path in plot.findall(f"{SVG}path") if "L" in path.get("d", "")]
        assert {path.get("class") for path in drawn} == {"one", "two"}
        assert "first <run>" in [text.text for text in plot.findall(f"{SVG}text")]


def test_a_run_that_was_never_measured_has_a_picture_of_its_losses(run: Path) -> None:
    (run / "validation.csv").unlink()
    curves = read_curves(run)
    assert curves_table([curves])[0][2] == {}
    assert curves_picture([curves]).count("aria-label") == 1


def test_what_is_no_run_and_too_many_runs_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run of train tagger: there is no steps\.csv"):
        read_curves(tmp_path / "nothing")
    with pytest.raises(UsageError, match="1 to 5 runs, but got 6"):
        curves_picture([read_curves(run)] * (MOST_RUNS + 1))
    (run / "steps.csv").write_text("stage,step,samples,loss\n", encoding="utf-8")
    with pytest.raises(UsageError, match="has made no step yet"):
        read_curves(run)


def test_the_command_prints_a_table_and_replaces_pictures_of_its_own_alone(run: Path) -> None:
    output = run / "curves.svg"
    for _ in range(2):
        result = CliRunner().invoke(
            annotary, ["train", "curves", str(run), "--output", str(output)]
        )
        assert result.exit_code == 0, result.output
    assert output.read_text(encoding="utf-8").rstrip().endswith(MARK)
    assert "my-run       12,800   2.5000  0.2000  0.2500    0.1000" in result.stdout
    result = CliRunner().invoke(annotary, ["train", "curves", str(run), "--json"])
    assert json.loads(result.stdout)[0]["best_map"] == 0.25
    output.write_text("mine", encoding="utf-8")
    result = CliRunner().invoke(annotary, ["train", "curves", str(run), "--output", str(output)])
    assert isinstance(result.exception, UsageError)
    assert output.read_text(encoding="utf-8") == "mine"
